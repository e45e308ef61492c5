import os

import torch

# The test networks are tiny: one thread is as fast as many, and does not crawl where others use the same cores.
torch.set_num_threads(1)
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # before anything imports Triton
