# Made from _http/__init__.py: edit that, then run `python -m tests.httpx2_twin`.
