"""What the server imports, so that the processes that it forks need not."""

from accelerate import Accelerator, PartialState  # noqa: F401
from sentence_transformers import SentenceTransformer  # noqa: F401
from sklearn.cluster import KMeans  # noqa: F401
from transformers import AutoModelForCausalLM, AutoTokenizer, BertModel, LlamaForCausalLM  # noqa: F401

from instruct_prune.report import show  # noqa: F401
from instruct_prune.run import pipeline  # noqa: F401
