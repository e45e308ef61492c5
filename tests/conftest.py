import torch

# The test networks are tiny: one thread is as fast as many, and does not crawl where others use the same cores.
torch.set_num_threads(1)
