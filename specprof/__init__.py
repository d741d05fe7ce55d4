"""specprof: what speculative decoding does for your models, on your hardware, with your prompts, and why."""

__version__ = "0.1.0.dev0"
