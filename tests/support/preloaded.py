"""What the processes of tests begin with; see `forks`."""

import torch.distributed
import torch.nn.parallel  # noqa: F401

import workflows.finetuning.fit  # noqa: F401
