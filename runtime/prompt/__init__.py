"""Turn a prompt into text embeddings: grammar, parsing, tokenizing, chunking, encoding.

Imports only the shared modules (`types.py`, `names.py`): sessions are arguments. Start at `encode.py`, which calls the others in order.
"""
