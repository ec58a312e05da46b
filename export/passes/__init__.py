"""Graph passes, `Model → Model`: fusions, layouts, half precision, standard opsets.

Imports only `graphs`. Start at `common.py`; `export/targets.py` lists the passes of each target.
"""
