"""Run a notebook's cells as plain Python in the working directory, and save it with its outputs.

python execute.py quickstart.ipynb OUT.ipynb [--replace OLD NEW]...
"""

import argparse
import ast
import base64
import contextlib
import io
import json
import pathlib


def execute(cells: list[str]) -> list[list[dict]]:
    """Run code cells; return their outputs in nbformat 4: printed text, and the last expression's image or value."""
    namespace = {"__name__": "__main__"}
    return [_outputs(code, namespace, number) for number, code in enumerate(cells, start=1)]


def _outputs(code: str, namespace: dict, number: int) -> list[dict]:
    tree, printed, value = ast.parse(code), io.StringIO(), None
    last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
    with contextlib.redirect_stdout(printed):
        exec(compile(tree, f"cell {number}", "exec"), namespace)
        if last is not None:
            value = eval(compile(ast.Expression(last.value), f"cell {number}", "eval"), namespace)
    outputs = []
    if printed.getvalue():
        outputs.append({"output_type": "stream", "name": "stdout", "text": _lines(printed.getvalue())})
    if value is not None:
        data = {"text/plain": _lines(repr(value).partition(" at 0x")[0])}
        if hasattr(value, "_repr_png_"):
            data["image/png"] = base64.b64encode(value._repr_png_()).decode()
        result = {"output_type": "execute_result", "execution_count": number, "metadata": {}, "data": data}
        outputs.append(result)
    return outputs


def _lines(text: str) -> list[str]:
    return text.splitlines(keepends=True)


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("notebook", type=pathlib.Path)
    parser.add_argument("out", type=pathlib.Path)
    parser.add_argument("--replace", nargs=2, action="append", default=[], help="text to replace, and its replacement")
    given = parser.parse_args()
    book = json.loads(given.notebook.read_text(encoding="utf-8"))
    codes = [cell for cell in book["cells"] if cell["cell_type"] == "code"]
    sources = ["".join(cell["source"]) for cell in codes]
    for old, new in given.replace:
        if not any(old in source for source in sources):
            parser.error(f"{old!r} is in no cell")
        sources = [source.replace(old, new) for source in sources]
    outputs = execute(sources)
    for number, (cell, each) in enumerate(zip(codes, outputs, strict=True), start=1):
        cell |= {"execution_count": number, "outputs": each}
    given.out.write_text(json.dumps(book, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
