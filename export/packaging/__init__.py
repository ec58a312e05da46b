"""From a folder of graphs to a bundle: staging and publishing, tokenizer files, safety concepts, optimum's layout.

May import `graphs`, `passes`, `sources` and `subgraphs`. Start at `assemble.py`.
"""
