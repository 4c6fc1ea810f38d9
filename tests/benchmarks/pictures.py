"""Decoding and augmenting beside Pillow: `python -m tests.benchmarks.pictures`.

JPEGs of 256 x 256 pixels (parts of scikit-learn's two photographs) become 224 x 224 by random resized crops (area 0.9
to 1.0), each side cutting out the same parts of the same files, into one batch `[n, 3, 224, 224]`. The peer decodes and
resizes with Pillow, as torchvision's transforms do with open_clip; OpenCV alone stands beside. Below, whole batches of
the stream: reading and CRC, decoding, captions' tokens. Rounds alternate; medians per CPU-second, one thread unless it
says otherwise.
"""

from __future__ import annotations

import argparse
import io
import multiprocessing
import resource
import statistics
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
from PIL import Image
from sklearn.datasets import load_sample_images

from data_pipeline.config import DataConfig, ImageConfig, ShardSource
from data_pipeline.pairs.augment import Augmentation, Crop, crop_of, draws
from data_pipeline.pairs.pictures import augmented
from data_pipeline.pairs.shards import PairWriter
from data_pipeline.pairs.stream import PairStream
from data_pipeline.pairs.tokenizers import open_caption_tokenizer
from tests.benchmarks.common import machine, print_table

SIDE, SIZE = 256, 224
_PASSES = 6  # of two threads or processes, so that their start counts for little
IMAGES = ImageConfig(augment="random_resized_crop")


def photographs(count: int, quality: int) -> list[bytes]:
    """Parts of two photographs as JPEGs of 256 x 256, chroma halved as cameras have it."""
    generator = np.random.default_rng(0)
    sources = load_sample_images().images
    files = []
    for number in range(count):
        source = sources[number % len(sources)]
        side = int(generator.integers(SIDE, 400))
        top, left = (int(generator.integers(0, n - side + 1)) for n in source.shape[:2])
        part = Image.fromarray(source[top : top + side, left : left + side])
        buffer = io.BytesIO()
        part.resize((SIDE, SIDE), Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=quality, subsampling="4:2:0")
        files.append(buffer.getvalue())
    return files


def with_pillow(picture: bytes, crop: Crop, out: np.ndarray) -> None:
    """Decode, crop, resize, channels first."""
    box = (crop.left, crop.top, crop.left + crop.width, crop.top + crop.height)
    image = Image.open(io.BytesIO(picture)).convert("RGB").crop(box).resize((SIZE, SIZE), Image.Resampling.BICUBIC)
    out[:] = np.asarray(image).transpose(2, 0, 1)


def with_opencv(picture: bytes, crop: Crop, out: np.ndarray) -> None:
    """The same with OpenCV's own decoder."""
    image = cv2.cvtColor(cv2.imdecode(np.frombuffer(picture, np.uint8), cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)
    part = image[crop.top : crop.top + crop.height, crop.left : crop.left + crop.width]
    out[:] = cv2.resize(part, (SIZE, SIZE), interpolation=cv2.INTER_CUBIC).transpose(2, 0, 1)


def write_set(folder: Path, pictures: list[bytes]) -> None:
    """A shard set of the pictures, with CLIP's byte pairs of a tiny merges file."""
    (folder / "merges.txt").write_text("#version: 0.2\nt h\nth e</w>\na n\n")
    (folder / "photographs").mkdir()
    writer = PairWriter(
        folder / "photographs",
        name="photographs",
        tokenizer_sha256=open_caption_tokenizer(folder / "merges.txt").sha256,
    )
    for number, picture in enumerate(pictures):
        writer.add(picture, "jpg", f"the photograph number {number} of a temple or a flower, and the other one")
    writer.finish()


def measured(work: Callable[[], int]) -> tuple[float, float]:
    """Pictures per CPU-second and per second."""
    clock, cpu = time.perf_counter(), _cpu_seconds()
    count = work()
    return count / (_cpu_seconds() - cpu), count / (time.perf_counter() - clock)


def _cpu_seconds() -> float:
    """Of this process and of those that it has waited for."""
    own, children = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
    return own.ru_utime + own.ru_stime + children.ru_utime + children.ru_stime


def in_two_threads(work: Callable[[int, int], None], count: int) -> int:
    """Each half of 0 ... count in a thread of its own."""
    threads = [threading.Thread(target=work, args=half) for half in ((0, count // 2), (count // 2, count))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return _PASSES * count


def in_two_processes(work: Callable[[int, int], None], count: int) -> int:
    """Each half in a forked process, whose result is dropped: handing it over would cost more."""
    context = multiprocessing.get_context("fork")
    halves = [context.Process(target=work, args=half) for half in ((0, count // 2), (count // 2, count))]
    for half in halves:
        half.start()
    for half in halves:
        half.join()
    return _PASSES * count


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--pictures", type=int, default=512)
    parser.add_argument("--quality", type=int, default=90, help="of the JPEGs")
    parser.add_argument("--quick", action="store_true", help="few pictures and one round, only to see that it runs")
    options = parser.parse_args()
    if options.quick:
        options.rounds, options.pictures = 1, 32
    with tempfile.TemporaryDirectory() as folder:
        compare(Path(folder), options.pictures, options.quality, options.rounds)


def compare(folder: Path, count: int, quality: int, rounds: int) -> None:
    """Alternates the sides, prints every median."""
    pictures = photographs(count, quality)
    write_set(folder, pictures)
    augmentation = Augmentation.of(IMAGES)
    numbers = draws(1, np.arange(count)).tolist()
    crops = [crop_of(augmentation, drawn, SIDE, SIDE) for drawn in numbers]
    out = np.empty((count, 3, SIZE, SIZE), dtype=np.uint8)

    def each(one: Callable[[int], None]) -> Callable[[], int]:
        def work() -> int:
            for number in range(count):
                one(number)
            return count

        return work

    sides = {
        "Pillow": each(lambda i: with_pillow(pictures[i], crops[i], out[i])),
        "OpenCV alone": each(lambda i: with_opencv(pictures[i], crops[i], out[i])),
        "Trestle": each(lambda i: augmented(pictures[i], augmentation, numbers[i], out[i])),
    }

    def ours(first: int, end: int) -> None:
        for _ in range(_PASSES):
            for i in range(first, end):
                augmented(pictures[i], augmentation, numbers[i], out[i])

    sides["Trestle, two threads"] = lambda: in_two_threads(ours, count)
    sides["Trestle, two processes"] = lambda: in_two_processes(ours, count)
    source = ShardSource(str(folder / "photographs"))
    streams = {}
    for workers in (0, 1, 2, 4):
        images = ImageConfig(augment="random_resized_crop", workers=workers)
        streams[workers] = PairStream(DataConfig(mix=[source], images=images), 1, image_size=SIZE, context_length=77)

    def batches(stream: PairStream) -> int:
        return sum(len(stream.batch(start, 64).corpus) for start in range(0, count, 64))

    for workers, stream in streams.items():
        sides[f"Trestle's stream, {workers} threads besides" if workers else "Trestle's stream"] = (
            lambda stream=stream: batches(stream)
        )
    results: dict[str, list[tuple[float, float]]] = {name: [] for name in sides}
    for number in range(rounds + 1):
        for name, work in sides.items():
            found = measured(work)
            if number or rounds == 1:  # the first round is for warming up
                results[name].append(found)
    peer = statistics.median(cpu for cpu, _ in results["Pillow"])
    rows = []
    for name, found in results.items():
        rates = [cpu for cpu, _ in found]
        middle, seconds = statistics.median(rates), statistics.median(second for _, second in found)
        rows.append(
            [name, f"{middle:.0f}", f"({min(rates):.0f}-{max(rates):.0f})", f"{middle / peer:.2f}", f"{seconds:.0f}"]
        )
    print(machine("numpy", "simplejpeg", "opencv-python-headless", "pillow"))
    print(f"JPEG quality {quality}, {sum(map(len, pictures)) / count / 1000:.1f} kB each")
    print_table(["side", "pictures per CPU-s", "(least-greatest)", "of Pillow's", "per second"], rows)


if __name__ == "__main__":
    main()
