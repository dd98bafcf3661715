"""Load: live servers under clients that wait, and under arrivals that do not.

    python -m bench load --run runs/latest --output benchmarks/load
    python -m bench load --bundle DIR --file texts.csv --targets+=mine=tei@http://127.0.0.1:8080

Servers take turns in slices of a second or so; those that wait for their turn stand idle. Clients and servers
share this machine's cores, unless a target stands elsewhere.
"""

import dataclasses
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from bench.harness.options import CommonOptions, results_of
from bench.harness.report import build_console, publish
from bench.harness.workload import Workload, draw_lengths, rows_of_file, rows_of_run, texts_of_lengths
from bench.load.report import load_pictures, load_tables
from bench.load.servers import ServerSpec, infinity_server, litserve_server, our_server
from bench.load.trial import LoadTest
from bench.load.wire import parse_target
from serve.contract.bundle import read_bundle
from serve.contract.errors import InputError
from serve.session import resolve_device

NUM_ROWS = 2000
"""Texts that are sent, again and again."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoadOptions(CommonOptions):
    """Load: live servers under many clients."""

    run: Path | None = None
    """Run directory: its held-out rows are sent, its model is given to peers, and RUN/onnx is served."""
    bundle: Path | None = None
    """Bundle to serve; null takes RUN/onnx, or none where --targets are given and there is no RUN/onnx."""
    file: Path | None = None
    """File with texts to send, in place of the run's rows."""
    text_column: str = "text"
    """Column of --file with the text."""
    lengths: str | None = None
    """Send made-up texts of these lengths [tokens]: 128, uniform:8:64 or lognormal:30:0.6; wants a bundle."""
    split: str = "validation"
    """Split of the run whose rows are sent."""
    targets: list[str] = dataclasses.field(default_factory=list)
    """Servers that run already: NAME=FORMAT@URL; formats are native, tei, hf, infinity and litserve."""
    litserve_python: Path | None = None
    """Python that has LitServe; null takes this one."""
    infinity_python: Path | None = None
    """Python that has infinity_emb; null takes this one."""
    clients: list[int] = dataclasses.field(default_factory=lambda: [1, 8, 32, 128])
    """Numbers of clients of the closed loop."""
    p99_bound_ms: float = 100.0
    """The highest rate is sought at which the 99th percentile of latency stays within this."""

    def __post_init__(self) -> None:
        super().__post_init__()
        problems = []
        if sum(source is not None for source in (self.run, self.file, self.lengths)) == 0:
            problems.append("no texts to send: give --run RUN, --file FILE or --lengths lognormal:30:0.6")
        if self.file is not None and self.lengths is not None:
            problems.append("--file and --lengths both say what is sent; give one")
        if self.lengths is not None and self.served is None:
            problems.append("--lengths makes texts by a bundle's tokenizer; give --bundle DIR, or send --file FILE")
        if self.run is None and self.bundle is None and not self.targets:
            problems.append("no server: give --run RUN, --bundle DIR or --targets+=NAME=FORMAT@URL")
        if not self.clients or min(self.clients) < 1:
            problems.append(f"--clients must be 1 or more, found {self.clients}")
        if not self.p99_bound_ms > 0:
            problems.append(f"--p99_bound_ms must be positive, found {self.p99_bound_ms}")
        if problems:
            raise InputError("\n".join(problems))

    @property
    def served(self) -> Path | None:
        """Bundle that our server gets."""
        if self.bundle is not None or self.run is None:
            return self.bundle
        own = self.run / "onnx"
        return own if own.exists() or not self.targets else None


def run(options: LoadOptions, command: str) -> None:
    """Start the servers, measure, print and write.

    Raises:
        InputError: the texts or the bundle cannot be read.
    """
    console = build_console()
    rows = read_texts(options)
    specs = choose_servers(options, list(server_specs(options)))
    test = LoadTest(options, rows, specs, console)
    try:
        test.run()
    finally:
        test.close()
    results = results_of(
        options,
        benchmark="load",
        command=command,
        work={
            "rows": len(rows),
            "rows_digest": rows.digest,
            "origin": rows.origin,
            "p99_bound_ms": options.p99_bound_ms,
            "quick": options.quick,
        },
        headline=next(iter(test.servers), ""),
        contenders=test.records,
        measurements=test.measurements,
        warnings=test.warnings,
    )
    publish(results, load_tables(results), load_pictures(results), options.output, console)


def read_texts(options: LoadOptions) -> Workload:
    """Return the texts to send."""
    if options.file is not None:
        rows = rows_of_file(options.file, text_column=options.text_column)
    elif options.lengths is not None:
        from tokenizers import Tokenizer

        assert options.served is not None
        read_bundle(options.served, verify=False)  # the tokenizer's own error would not say what is missing
        tokenizer = Tokenizer.from_file(str(options.served / "tokenizer.json"))
        tokenizer.no_padding()
        tokenizer.no_truncation()
        lengths = draw_lengths(options.lengths, NUM_ROWS, options.seed).clip(min=3)
        rows = texts_of_lengths(tokenizer, lengths.tolist(), options.seed)
    else:
        assert options.run is not None
        rows = rows_of_run(options.run, options.split)
    return rows.sample(NUM_ROWS, options.seed)


def server_specs(options: LoadOptions) -> Iterator[ServerSpec]:
    """Yield the servers to measure: ours, peers, and what runs already."""
    if options.served is not None:
        default = read_bundle(options.served).default_variant(resolve_device("auto"))
        for variant in dict.fromkeys([default, "fp32"]):
            yield our_server(options.served, variant, options.num_threads)
    if options.run is not None:
        model = options.run / "model"
        yield litserve_server(model, options.litserve_python or Path(sys.executable))
        yield infinity_server(model, options.infinity_python or Path(sys.executable))
    for text in options.targets:
        target = parse_target(text)
        kind = text.partition("=")[2].partition("@")[0]
        yield ServerSpec(name=target.name, description=f"{kind} at {target.url}", format=kind, url=target.url)


def choose_servers(options: LoadOptions, specs: Sequence[ServerSpec]) -> list[ServerSpec]:
    """Return the servers asked for.

    Raises:
        InputError: a name that no server has, or two of one name.
    """
    names = [spec.name for spec in specs]
    if len(set(names)) < len(names):
        raise InputError(f"--targets: two servers of one name among {names}; name them differently")
    wanted = names if options.contenders is None else options.contenders
    if unknown := [name for name in wanted if name not in names]:
        raise InputError(f"--contenders {unknown}: there are {names}")
    chosen = [spec for spec in specs if spec.name in wanted]
    if options.self_check:
        chosen.append(dataclasses.replace(chosen[0], name=f"{chosen[0].name} (again)"))
    return chosen
