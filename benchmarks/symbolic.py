"""What it costs that sizes are only known at run time: models with symbolic dims, compiled as they are and for one size.

    python -m benchmarks.symbolic [MODEL …] [--threads 1] [--limit 1.15]

Both run in turn, many times, on the same inputs; symbolic over bound is printed, by the fastest runs and by the medians. Exits with
status 1 where the fastest runs are above the limit.
"""

from __future__ import annotations

import time
from statistics import median
from typing import Annotated

import typer

import tensorsmith as ts
from benchmarks.models import load

_MODELS = ["bert_tiny", "mobilebert_4l", "nmt_transformer", "llama_mobilellm_prefill", "llama_mobilellm_kv", "lstm_streaming"]


def main(
    models: Annotated[list[str] | None, typer.Argument()] = None,
    threads: Annotated[int, typer.Option()] = 1,
    limit: Annotated[float, typer.Option(help="The largest accepted ratio.")] = 1.15,
    repeats: Annotated[int, typer.Option(help="Runs of each.")] = 200,
) -> None:
    """Time each of MODELS with symbolic dims against the same compiled for the sizes of its inputs."""
    worst = 0.0
    for name in models or _MODELS:
        proto, feeds = load(name)
        shapes = {key: array.shape for key, array in feeds.items()}
        symbolic = ts.compile(proto, threads=threads, cache=False)
        bound = ts.compile(proto, threads=threads, cache=False, input_shapes=shapes)
        times: dict[ts.Module, list[float]] = {symbolic: [], bound: []}
        for _ in range(repeats):
            for module, found in times.items():
                start = time.perf_counter()
                module.run(feeds)
                found.append(1e3 * (time.perf_counter() - start))
        fastest, middle = (pick(times[symbolic]) / pick(times[bound]) for pick in (min, median))
        print(f"{name}: symbolic {min(times[symbolic]):.3f} ms, bound {min(times[bound]):.3f} ms: {fastest:.2f} x (medians {middle:.2f} x)")
        worst = max(worst, fastest)
    raise typer.Exit(0 if worst <= limit else 1)


if __name__ == "__main__":
    typer.run(main)
