"""Oracle-RLAIF of a video-language model around a pretrained language model: ``python -m benchmarks.pretrained``."""
