"""`selkern explore`: a page on this machine that shows what selective kernels choose while one moves a picture."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from selkern.cli.greet import greet
from selkern.cli.parse import Code, Run, parse
from selkern.data import LARGEST_IMAGE
from selkern.data.table_options import TableOptions
from selkern.errors import UsageError
from selkern.progress import Progress, say
from selkern.tuning import check_threads, measured_threads, tune

if TYPE_CHECKING:
    from selkern.explore.session import Session

_PASSES = 1000  # images that a session shows, roughly: for the choice of threads


@dataclass(frozen=True, kw_only=True)
class ExploreOptions:
    """Open a page in the browser on which pictures are enlarged, turned and blurred, and units forced, live."""

    run: Run
    """A run, weights file, bundled weights, hf-hub:user/name; or code to run: timm:NAME, FILE.py:NAME, module:NAME."""
    data: str | None = None
    """Where its pictures come from: digits, a folder, .csv or .parquet; by default the run's own data."""
    split: str = "auto"
    """train, val, test or all; auto is test, or all where other data than the run's have no splits of their own."""
    pictures: tuple[str, ...] = ()
    """Picture files and folders that are on the page from the start; with --static these alone."""
    static: Path | None = None
    """A new folder for the page as files, of pictures at a grid of sizes: for a web host, without a server."""
    model: Code = ""
    arguments: Annotated[str, tyro.conf.arg(name="with")] = ""
    """Arguments for a third-party network, as in Python: "pretrained=True"."""
    image_size: int | None = None
    """Side of the images that a third-party network is shown, px; by default timm's own, else 224."""
    host: str = "127.0.0.1"
    """Address to listen at. Any that other machines reach asks for a token."""
    port: int | None = None
    """Port to listen at; by default the first free one from 8421 on."""
    token: str = ""
    """What the page's address has to end in; by default a new one where other machines reach it, else none."""
    browser: bool = True
    """Open the page in a browser, where there is a screen."""
    device: str = "auto"
    """Where to compute: auto (a GPU if there is one), cpu or cuda."""
    threads: int | None = None
    """CPU threads to compute with; by default what a short measurement finds fastest."""
    table: tyro.conf.OmitArgPrefixes[TableOptions] = field(default_factory=TableOptions)

    def __post_init__(self) -> None:
        check_threads(self.threads)
        if self.port is not None and not 1 <= self.port <= 65535:
            raise UsageError(f"port is {self.port}", "--port", "must lie between 1 and 65535")
        if self.image_size is not None and not 1 <= self.image_size <= LARGEST_IMAGE:
            fix = f"must lie between 1 and {LARGEST_IMAGE}"
            raise UsageError(f"image size is {self.image_size}", "--image-size", fix)
        if self.static is not None and (self.token or self.port is not None or self.host != ExploreOptions.host):
            raise UsageError("--static serves nothing", "--static", "leave --host, --port and --token out")
        if self.token and not (self.token.isascii() and self.token.replace("-", "").replace("_", "").isalnum()):
            raise UsageError("the token has other characters than letters, digits, - and _", "--token", "give another")


def main(argv: list[str]) -> int:
    """`selkern explore`; Ctrl+C is its ordinary end."""
    options = parse(ExploreOptions, argv, "explore")
    greet(f"exploring {options.run}")
    if options.static is not None:
        return _write(options, options.static)
    with ExitStack() as stack:
        with Progress("starting") as line:
            from selkern.explore.serve import Server, address, bind, open_browser, token_for

            tune(threads=options.threads)
            # Before the network: whoever asked for a port hears at once that it is taken.
            listening = stack.enter_context(bind(options.host, options.port))
            session = _session(options, line)
        token = token_for(options.host, options.token)
        url = address(options.host, listening.getsockname()[1], token)

        def ready() -> None:
            print(f"open {url}   (Ctrl+C ends it)", flush=True)
            if options.browser:
                open_browser(url)

        Server(session, listening, token, ready).until_stopped()
    say("stopped")
    return 0


def _write(options: ExploreOptions, folder: Path) -> int:
    """The page as files."""
    with Progress("starting") as line:
        from selkern.explore import static

        tune(threads=options.threads)
        session = _session(options, line)
        names = static.static_names(session)
        static.make_folder(folder)
        line.show("computing the pictures at every size", total=len(names) * len(static.sizes()))
        try:
            page = static.write_static(session, folder, names, seen=line.advance)
        except BaseException:
            static.clear(folder)
            raise
    shown = f"{len(names)} picture{'s' * (len(names) != 1)} at {len(static.sizes())} sizes"
    print(f"{page}: {shown}; give the folder to a web host")
    return 0


def _session(options: ExploreOptions, line: Progress) -> Session:
    """The network and its pictures."""
    from selkern.convert.subject import is_code
    from selkern.explore.opening import open_session
    from selkern.inference.network import load, load_other
    from selkern.inference.predict import list_images

    files = list_images(options.pictures, lambda text: line.say(f"note: {text}")) if options.pictures else []
    line.show("loading the network")
    if is_code(options.run):
        arguments, size = options.arguments, options.image_size
        loaded = load_other(
            options.run, options.data, arguments=arguments, size=size, device=options.device, table=options.table
        )
    elif options.arguments or options.image_size:
        flag = "--with" if options.arguments else "--image-size"
        raise UsageError("is for third-party networks", flag, "leave it out: the weights file has it")
    else:
        loaded = load(options.run, options.device, options.model)
    if options.threads is None:
        line.show("choosing the threads")
        measured_threads(loaded.model, loaded.preprocess.size, _PASSES, batch=2)
    line.show("listing the pictures")
    return open_session(loaded, options.data, options.split, files=files, table=options.table, say=line.say)
