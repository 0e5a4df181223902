"""What native code calls the types of numbers that it reads and writes."""

from __future__ import annotations

import torch

STORAGE = {torch.float32: "float32", torch.bfloat16: "bfloat16", torch.float16: "float16"}
