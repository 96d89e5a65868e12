"""Kinds of models: how rows become items, items become batches, and what a forward pass leaves to be read."""

MODELS = {
    "causal_lm": "instruct_prune.models.causal_lm:CausalLM",
    "image_encoder": "instruct_prune.models.image_encoder:ImageEncoder",
    "vision_language": "instruct_prune.models.vision_language:VisionLanguage",
}
"""The kind of model that a row format asks for; a format may also name a kind of the user's own, as module:Class."""
