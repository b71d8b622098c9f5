"""The structure of the code that keeps it readable, as figures that are printed (pytest -s) and held."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("supernet", "ofa", "hat", "predictors", "recipes")
NAMED = ("MobileNetV3", "Transformer")
FRAMEWORKS = re.compile(r"(nn\.|pl\.|Lightning|Module|PreTrained|Callback|Supernet|Config$)")


def modules(*packages):
    for package in packages or PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            yield path.relative_to(ROOT), ast.parse(path.read_text())


def functions(*packages):
    """(place, lines) of all functions, nested ones within their outer function."""
    for path, tree in modules(*packages):
        for node in ast.walk(tree):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                yield f"{path}:{node.name}", node.end_lineno - node.lineno + 1, node


def report(what, found, n=3):
    print(f"\n{what}: " + ", ".join(f"{name} {value}" for name, value in found[:n]))


def test_the_loop_is_on_one_page():
    ((_, lines, _),) = [one for one in functions("recipes") if one[0] == "recipes/specialize.py:find_network"]
    print(f"\nfind_network: {lines} lines")
    assert lines <= 60


@pytest.mark.parametrize("packages, most", [(("recipes",), 90), (("supernet", "ofa", "hat", "predictors"), 120)])
def test_no_function_is_longer_than_a_screen_or_two(packages, most):
    """Lines of code: a docstring is documentation, and may be as long as its arguments need."""

    def code(node):
        documented = ast.get_docstring(node) is not None
        return node.end_lineno - (node.body[0].end_lineno if documented else node.lineno)

    longest = sorted(((name, code(node)) for name, _, node in functions(*packages)), key=lambda one: -one[1])
    report(f"longest functions of {', '.join(packages)}", longest)
    assert longest[0][1] <= most


def test_no_class_of_our_own_has_more_than_26_methods():
    counts = []
    for path, tree in modules():
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef):
                if any(FRAMEWORKS.search(ast.unparse(base)) for base in node.bases):
                    continue  # its methods are what the framework asks for
                counts.append((f"{path}:{node.name}", sum(isinstance(x, ast.FunctionDef) for x in node.body)))
    counts.sort(key=lambda one: -one[1])
    report("classes with the most methods", counts)
    assert counts[0][1] <= 26


def test_no_family_is_named_outside_its_package():
    """A string, a name or an attribute; comments and docstrings may speak of families."""
    found = []
    for path, tree in modules("supernet", "predictors", "recipes"):
        documented = {
            id(node.body[0].value)
            for node in ast.walk(tree)
            if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)) and ast.get_docstring(node) is not None
        }
        for node in ast.walk(tree):
            text = getattr(node, "id", None) or getattr(node, "attr", None)
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in documented:
                text = node.value
            if text in NAMED:
                found.append(f"{path}:{node.lineno} {text}")
    print(f"\nfamilies named outside their packages: {len(found)}")
    assert not found


def test_no_runtime_is_compared_by_name_in_recipes():
    found = []
    for path, tree in modules("recipes"):
        for node in ast.walk(tree):
            if isinstance(node, ast.Compare) and "runtime" in ast.unparse(node.left):
                found.append(f"{path}:{node.lineno} {ast.unparse(node)}")
    print(f"\nruntimes compared by name: {len(found)}")
    assert not found


def imports(tree, names):
    """The modules of ours that a module imports, also in functions and for type hints."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                yield inner if inner in names else node.module if node.module in names else ""


def test_no_module_imports_itself_through_others():
    """Imports in functions and for type hints count. A package's __init__ that names its parts lazily is no import."""
    trees = {}
    for path, tree in modules():
        trees[".".join(path.with_suffix("").parts).removesuffix(".__init__")] = tree
    arrows = {
        name: {other for other in imports(tree, trees) if other and other != name} for name, tree in trees.items()
    }
    circles = set()

    def visit(name, path):
        if name in path:
            circles.add(" -> ".join([*path[path.index(name) :], name]))
        elif name not in done:
            for other in sorted(arrows[name]):
                visit(other, [*path, name])
            done.add(name)

    done = set()
    for name in sorted(arrows):
        visit(name, [])
    print(f"\nimport circles: {len(circles)}")
    assert not circles


WORDS = re.compile(r"\b(told|tells|is no|are no|that ships?|of which)\b", re.IGNORECASE)


def test_the_words_are_plain():
    found = [
        f"{path.relative_to(ROOT)}: {match[0]}"
        for package in PACKAGES
        for path in sorted((ROOT / package).rglob("*.py"))
        for match in WORDS.finditer(path.read_text())
    ]
    print(f"\nwords that are not plain: {len(found)}")
    assert len(found) <= 15, found


def test_tests_of_specialize_reach_through_public_names():
    lines = [
        line
        for name in ("test_specialize", "test_choosing", "test_constraints", "test_lab", "test_timer")
        if (path := ROOT / "tests" / f"{name}.py").is_file()
        for line in path.read_text().splitlines()
        if "monkeypatch." in line
    ]
    print(f"\nlines that patch in the tests of specialize: {len(lines)}")
    assert len(lines) <= 20
    assert not [line for line in lines if re.search(r"[\"'.]_[a-z]", line)]
