"""What a backend of `contrastive_loss` is: a module with these four functions."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor


class ContrastiveBackend(Protocol):
    """A backend module. Importing it must be cheap: the library that it drives is imported by what is called.

    Both passes are over the logits `logit_scale * audio @ text.T + logit_bias`, of R rows and C columns. Either may be
    0, and R need not be C: rows are one rank's clips, columns those of all ranks or of one. Row i's positive is column
    `offset + i`, which need not be among the C (`offset` may be negative too), or with ids every column of its id: none
    perhaps. A mean over nothing is 0, a largest of nothing and a log-sum-exp of nothing -inf. Tensors come validated,
    of one device; strides are any. A `chunk_size` of 0 leaves to the backend how many rows' logits it holds at once.

    Sums are float32 (float64 for float64 inputs), called the accumulator below, whatever the inputs are.
    """

    def unavailable(self) -> str | None:
        """Why it cannot serve on this machine at all, None if it can."""

    def rejects(self, *, device: torch.device, dtype: torch.dtype, kind: str) -> str | None:
        """Why it cannot serve such a call, None if it can. Traced by the compiler: plain comparisons only."""

    def forward(
        self,
        audio: Tensor,
        text: Tensor,
        logit_scale: Tensor,
        logit_bias: Tensor | None,
        audio_ids: Tensor | None,
        text_ids: Tensor | None,
        offset: int,
        kind: str,
        chunk_size: int,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Five new tensors of the accumulator's dtype.

        Returns:
            row_loss: `[R]` log-sum-exp of each row less its largest logit (infonce), or its summed pair losses
                (sigmoid).
            column_loss: `[C]` log-sum-exp of each column less its largest logit (infonce), or zeros.
            row_positive: `[R]` mean logit of each row's positives less the bias (infonce), or zeros.
            row_facts: `[4, R]` of each row: mean similarity of positives, of negatives, 1 if its best
                positive is above every negative else 0, largest logit.
            column_best: `[2, C]` largest logit of each column among positives and negatives.
        """

    def backward(
        self,
        grad_row: Tensor,
        grad_column: Tensor,
        grad_positive: Tensor,
        row_loss: Tensor,
        column_loss: Tensor,
        row_facts: Tensor,
        column_best: Tensor,
        audio: Tensor,
        text: Tensor,
        logit_scale: Tensor,
        logit_bias: Tensor | None,
        audio_ids: Tensor | None,
        text_ids: Tensor | None,
        offset: int,
        kind: str,
        chunk_size: int,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """New, contiguous gradients of `audio`, `text`, `logit_scale` and `logit_bias`, in their dtypes and shapes.

        The first three arguments are the gradients of what `forward` returned first; the next four are what it
        returned, but that the losses and largest logits of rows and of columns may be those over more columns and
        rows than these, and so may the other facts. The last gradient is 0, like `logit_scale`, where there is no bias.
        """
