"""Prove: is a selection worth more than random rows of the same length? Arms are trained, judged and compared."""
