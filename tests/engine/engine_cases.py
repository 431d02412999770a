# SPDX-License-Identifier: Apache-2.0
"""The engine beside the Python model: what both need to run the same numbers."""

import json

import torch

from earnest import _native

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


class Beside:
    """An engine's model over the tensors of a Python one, in place."""

    def __init__(self, model, loaded=None):
        self.dtype = model.lm_head.weight.dtype
        self.width = model.config.text_config.hidden_size
        self.vocabulary = model.config.text_config.vocab_size
        precision = str(self.dtype).removeprefix("torch.")
        tensors = {name: tensor.detach() for name, tensor in model.state_dict().items()}
        self.native = loaded or _native.engine.from_memory(
            json.dumps(model.config.to_dict()), tensors, precision
        )

    def hear(self, mel):
        """mel [n_mels, frames] -> embeddings."""
        out = torch.empty(self.native.audio_tokens(mel.shape[1]), self.width, dtype=self.dtype)
        self.native.hear(mel.T.contiguous(), out)
        return out

    def forward(self, segments):
        """(cache, ids, embeddings or None, wanted) each -> hidden [sum of wanted, width]."""
        out = torch.empty(sum(wanted for *_, wanted in segments), self.width, dtype=self.dtype)
        self.native.forward(segments, out)
        return out

    def logits(self, hidden):
        out = torch.empty(len(hidden), self.vocabulary)
        self.native.logits(hidden, out)
        return out

    def logprob(self, hidden, targets, temperature=1.0):
        logp, entropy = torch.empty(2, len(hidden))
        self.native.logprob(hidden, targets, temperature, logp, entropy)
        return logp, entropy


def sequences(model, batch):
    """ids (int64, -1 where sound is heard) and embeddings of each sequence of a packed batch."""
    ids = batch.input_ids.clone()
    ids[batch.audio_positions] = -1
    with torch.no_grad():
        heard = model.embed_audio(batch.mel)
    out, used = [], 0
    for start, end in zip(batch.cu_seqlens.tolist()[:-1], batch.cu_seqlens.tolist()[1:], strict=True):
        rows = int((ids[start:end] == -1).sum())
        out.append((ids[start:end].clone(), heard[used : used + rows].clone()))
        used += rows
    return out
