"""Execute notebooks and keep their outputs in them, small; how long each took is printed, and how much of a processor.

    python notebooks/execute.py [notebooks/02-the-stack.ipynb ...]                  all of them, if none is named
    python notebooks/execute.py --pages out/notebooks [notebooks/02-the-stack.ipynb ...]

With --pages they are left as they are, and pages are written there instead. As many threads compute as other programs
leave cores: where they wait for one another spinning, two on a busy core take many times as long as one.

Pictures are kept as the smaller of PNG and JPEG; what goes to stderr, counters and times are not kept. The code that
the outputs are of is kept as a hash: tests/test_notebooks.py tells where a cell was changed and not executed since.
"""

import argparse
import base64
import hashlib
import io
import os
import resource
import time
from pathlib import Path

from PIL import Image

HERE = Path(__file__).parent
LIMIT = 600  # seconds a cell may take


def code(cells: list[dict]) -> str:
    """A hash of the code of a notebook's cells."""
    sources = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    return hashlib.sha256("\n\n".join(sources).encode()).hexdigest()[:12]


def small(picture: bytes) -> dict[str, str]:
    """A picture as PNG or JPEG, whichever is smaller."""
    image, files = Image.open(io.BytesIO(picture)).convert("RGB"), {}
    for kind, how in (("png", {"optimize": True}), ("jpeg", {"quality": 75, "optimize": True})):
        file = io.BytesIO()
        image.save(file, kind.upper(), **how)
        files[f"image/{kind}"] = base64.b64encode(file.getvalue()).decode()
    kind = min(files, key=lambda each: len(files[each]))
    return {kind: files[kind], "text/plain": f"<picture of {image.width} x {image.height} pixels>"}


def kept(outputs: list[dict]) -> list[dict]:
    """What is kept of a cell's outputs; one line of text after another is one output."""
    found: list[dict] = []
    for each in outputs:
        if each["output_type"] == "stream":
            if each["name"] == "stdout" and found and found[-1]["output_type"] == "stream":
                found[-1]["text"] += each["text"]
            elif each["name"] == "stdout":
                found.append(each)
            continue
        data = dict(each["data"])
        picture = data.get("image/png") or data.get("image/jpeg")
        data = small(base64.b64decode(picture)) if picture else {"text/plain": data["text/plain"]}
        kind = (
            {"output_type": "display_data"} if picture else {"output_type": "execute_result", "execution_count": None}
        )
        found.append({**kind, "data": data, "metadata": {}})
    return found


def execute(path: Path, pages: Path | None) -> tuple[float, float]:
    """Execute a notebook in its folder and write it back, or a page of it: seconds, and seconds of processors."""
    import nbformat  # of the notebooks' extra, which `code` does without
    from nbclient import NotebookClient

    book = nbformat.read(path, as_version=4)
    began, used = time.monotonic(), processors()
    NotebookClient(book, timeout=LIMIT, kernel_name="python3", resources={"metadata": {"path": str(HERE)}}).execute()
    took = time.monotonic() - began, processors() - used
    for cell in book.cells:
        cell.metadata.clear()
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = nbformat.from_dict(kept(cell.outputs)), None
    named = {"display_name": "Python 3", "language": "python", "name": "python3"}
    book.metadata = {"kernelspec": named, "language_info": {"name": "python"}, "outputs_of": code(book.cells)}
    if pages is None:
        nbformat.write(book, path)
        return took
    from nbconvert import HTMLExporter

    pages.mkdir(parents=True, exist_ok=True)
    text, _ = HTMLExporter().from_notebook_node(book, {"metadata": {"name": path.stem}})
    (pages / f"{path.stem}.html").write_text(text, encoding="utf-8")
    return took


def processors() -> float:
    """Seconds that kernels which have ended computed, on all cores together."""
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    return ended.ru_utime + ended.ru_stime


def spare_threads() -> None:
    """Has kernels compute with as many threads as there are idle cores now, unless OMP_NUM_THREADS says how many."""
    from minedit.speed import threads

    before = threads.look()
    time.sleep(1)
    if before and "OMP_NUM_THREADS" not in os.environ:
        cores = os.cpu_count() or 1
        os.environ["OMP_NUM_THREADS"] = str(threads.free(cores, cores, threads.others(before, threads.look())))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("notebooks", nargs="*", type=Path, default=sorted(HERE.glob("*.ipynb")))
    parser.add_argument("--pages", type=Path)
    args = parser.parse_args()
    spare_threads()
    for path in args.notebooks:
        seconds, computed = execute(path, args.pages)
        made = path if args.pages is None else args.pages / f"{path.stem}.html"
        size = made.stat().st_size / 1000
        print(f"{made}: {seconds:.0f} s, {computed:.0f} s of processors, {size:.0f} kB", flush=True)
