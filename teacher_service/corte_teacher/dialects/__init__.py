"""Languages of others that the service understands beside its own, under the same policy, keys and limits.

Rule 1: a dialect only translates. It admits with `admission`, asks with `Inference.answer`, and writes down
the `Prediction` that it gets; it never sees the backend, nor more than the level asked.
Rule 2: a dialect says nothing that the native routes do not say.
"""
