"""The day a GPU is there: all that is owed from one, in parts (``tools/gpu_day.py``)."""
