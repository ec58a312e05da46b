"""The demo model's tokenizer, and its text encoder's first schooling: `python models/demo/text.py`.

Before the U-Net sees a caption, the text encoder learns to tell what the captioned picture looks like: from its pooled
output a linear map predicts the picture's principal components. That costs a thousandth of what the same lesson costs
through the U-Net, and serves it like CLIP's pretraining serves Stable Diffusion's.
"""

from __future__ import annotations

import json
import time

import data
import numpy as np
import torch
from optim import Muon, split_parameters
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel

LENGTH = 24
VOCABULARY = 2048
START, END = "<|startoftext|>", "<|endoftext|>"
COMPONENTS = 192
BATCH = 64
STEPS = 1500
CHECKPOINT = data.WORK / "text.pt"
TOKENIZER = data.WORK / "tokenizer"


def clip_tokenizer(model: models.BPE) -> Tokenizer:
    """`model` with CLIP's normalization and splitting."""
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()])
    split = Regex(r"""'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+""")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(split, "removed", invert=True), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    return tokenizer


def train_tokenizer() -> None:
    """Write vocab.json and merges.txt, in CLIP's form, learned from the captions' words."""
    subjects = data.read_subjects()
    words = [word for names in subjects.words for word in names] * 4
    words += [f"{style} style" for style in data.STYLES] * 50 + [f"{colour} background" for colour in data.BACKGROUNDS] * 50
    words += ["a picture of the", "with and on in", "an emoji icon drawing of", "small big left right of"] * 8
    tokenizer = clip_tokenizer(models.BPE(unk_token=END, end_of_word_suffix="</w>"))
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY - 2,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        end_of_word_suffix="</w>",
        show_progress=False,
    )
    tokenizer.train_from_iterator(words, trainer)
    learned = json.loads(tokenizer.to_str())["model"]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = alphabet + [letter + "</w>" for letter in alphabet]
    tokens += [token for token, _ in sorted(learned["vocab"].items(), key=lambda item: item[1]) if token not in set(tokens)]
    tokens += [START, END]
    TOKENIZER.mkdir(parents=True, exist_ok=True)
    (TOKENIZER / "vocab.json").write_text(json.dumps({token: index for index, token in enumerate(tokens)}, ensure_ascii=False))
    merges = [" ".join(pair) if isinstance(pair, list) else pair for pair in learned["merges"]]
    (TOKENIZER / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n")


class Encoder:
    """Captions to padded token ids, as CLIP's tokenizer gives them."""

    def __init__(self) -> None:
        if not (TOKENIZER / "vocab.json").exists():
            train_tokenizer()
        self.vocabulary: dict[str, int] = json.loads((TOKENIZER / "vocab.json").read_text())
        files = (str(TOKENIZER / "vocab.json"), str(TOKENIZER / "merges.txt"))
        self.tokenizer = clip_tokenizer(models.BPE.from_file(*files, unk_token=END, end_of_word_suffix="</w>"))

    def __call__(self, captions: list[str]) -> Tensor:
        """(batch, LENGTH), int64."""
        ids = torch.full((len(captions), LENGTH), self.vocabulary[END])
        ids[:, 0] = self.vocabulary[START]
        for row, encoding in enumerate(self.tokenizer.encode_batch(captions)):
            tokens = encoding.ids[: LENGTH - 2]
            ids[row, 1 : 1 + len(tokens)] = torch.tensor(tokens)
        return ids


def build(encoder: Encoder) -> CLIPTextModel:
    end = encoder.vocabulary[END]
    config = CLIPTextConfig(
        vocab_size=len(encoder.vocabulary),
        hidden_size=256,
        intermediate_size=768,
        num_hidden_layers=3,
        num_attention_heads=8,
        max_position_embeddings=LENGTH,
        bos_token_id=encoder.vocabulary[START],
        eos_token_id=end,
        pad_token_id=end,
        attention_dropout=0.0,
        hidden_act="quick_gelu",
        attn_implementation="sdpa",
    )
    return CLIPTextModel(config)


def parts(rng: np.random.Generator) -> tuple[bool, bool]:
    """Whether a caption mentions the style, and the background."""
    return bool(rng.random() < 0.7), bool(rng.random() < 0.75)


def principal_components(drawings: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Coordinates of every image (subject, style, background) at 32×32: (…, COMPONENTS), and their scales."""
    small = drawings.astype(np.float32).reshape(*drawings.shape[:2], 32, 4, 32, 4, 4).mean((3, 5))
    pictures = np.stack([data.compose(small, colour) for colour in data.BACKGROUNDS.values()], 2)
    flat = pictures.reshape(*pictures.shape[:3], -1)
    centred = flat - flat.mean((0, 1, 2))
    sample = centred.reshape(-1, centred.shape[-1])
    values, vectors = np.linalg.eigh(sample.T @ sample / len(sample))
    return centred @ vectors[:, -COMPONENTS:], np.sqrt(values[-COMPONENTS:])


def main() -> None:
    torch.manual_seed(0)
    drawings = data.fetch_drawings()
    subjects = data.read_subjects()
    coordinates, scales = principal_components(drawings)
    targets = torch.from_numpy(coordinates / np.sqrt(scales * scales.max())).float()
    encoder = Encoder()
    model, head = build(encoder), nn.Linear(256, COMPONENTS)
    matrices, others = split_parameters([model, head], ("embedding",))
    optimizers: list[torch.optim.Optimizer] = [Muon(matrices, 1e-3), torch.optim.AdamW(others, 3e-3, weight_decay=0)]
    rates = [1e-3, 3e-3]
    styles, colours = list(data.STYLES), list(data.BACKGROUNDS)
    started = time.monotonic()
    for step in range(STEPS):
        rng = np.random.default_rng((3, step))
        picks = [(int(rng.integers(len(drawings))), int(rng.integers(2)), int(rng.integers(len(colours)))) for _ in range(BATCH)]
        captions = []
        for subject, style, colour in picks:
            with_style, with_colour = parts(rng)
            captions.append(
                data.caption(subjects.words[subject], styles[style] if with_style else None, colours[colour] if with_colour else None, rng)
            )
        index = torch.tensor(picks)
        for optimizer, rate in zip(optimizers, rates, strict=True):
            for group in optimizer.param_groups:
                group["lr"] = rate * min(1, (step + 1) / 50, 2 * (1 - step / STEPS))
        wanted = targets[index[:, 0], index[:, 1], index[:, 2]]
        ids = encoder(captions)
        longest = int((ids != encoder.vocabulary[END]).sum(1).max()) + 1  # what follows the end changes nothing before it
        with torch.autocast("cpu", torch.bfloat16):
            predicted = head(model(ids[:, :longest]).pooler_output)
        loss = ((predicted.float() - wanted) ** 2).mean() / targets.var()
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        if (step + 1) % 100 == 0:
            print(f"{time.monotonic() - started:6.0f} s  step {step + 1}  unexplained {float(loss.detach()):.4f}", flush=True)
    torch.save(model.state_dict(), CHECKPOINT)


if __name__ == "__main__":
    main()
