"""Find out how a dump is laid out, and read each image's label off its path. Pure: names in, labels out."""

import re
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath

from thaw.config import Layout
from thaw.errors import BadDump
from thaw.records import Side

ACCEPTED_LAYOUTS = (
    "Accepted layouts: flat names (train/cat.123.jpg), a folder for each class (cats/1.jpg), "
    "or ready splits (train/cats/1.jpg beside test/cats/2.jpg)."
)

_SIDE_NAME = re.compile(
    r"(?:(?P<train>train(ing)?)|(?P<test>test(ing)?)|(?P<validation>val|valid|validation))"
    r"\d*([_-]?(set|images|data))?",
    re.IGNORECASE,
)
_NUMBERED_NAME = re.compile(r"(?P<label>.+?)[._ -]?\(?\d+\)?")
# Up to here labels need not repeat to be believed: a dump may be that small.
_FEW_LABELS = 10


@dataclass(frozen=True)
class Reading:
    """What the paths say: the label and side of each image, and why the others have none.

    `class_parents` are the folders in which every folder stands for a class.
    """

    layout: str
    labels: dict[str, str]
    sides: dict[str, Side] = field(default_factory=dict)
    unlabelled: dict[str, str] = field(default_factory=dict)
    class_parents: frozenset[str] = frozenset()

    @property
    def classes(self) -> tuple[str, ...]:
        return tuple(sorted(set(self.labels.values())))


def natural_key(path: str) -> tuple:
    """Sort key that counts: cat.2.jpg comes before cat.10.jpg."""
    parts = re.split(r"(\d+)", path)
    parts[1::2] = [(len(digits := part.lstrip("0")), digits) for part in parts[1::2]]
    return tuple(parts), path


def read_layout(images: Sequence[str], folders: Collection[str], layout: Layout) -> Reading:
    """Label images by their paths.

    `auto` tries ready splits, then flat names, then class folders, on what is left when the folders that
    all images share are taken away. Where `train/` stands beside folders that only look like other sides
    (Kaggle's unlabelled `test1/`), the images are those in `train/`, and the others are unlabelled.

    Args:
        images: Paths of the images.
        folders: Paths of all folders, those without images included.
    Raises:
        BadDump: there is no image, no label, only one class or a class without images; or `layout` is
            not how the dump is laid out.
    """
    if not images:
        raise BadDump(f"it holds no images. {ACCEPTED_LAYOUTS}")
    images = sorted(images, key=natural_key)
    found = _detect(images)
    reading = found if layout == "auto" else _READERS[layout](images)
    if reading is None and found.labels and found.layout != layout:
        raise BadDump(
            f"layout '{layout}' was asked for, but the dump looks like '{found.layout}': it holds "
            f"{_examples(images)}. Set layout to 'auto' or '{found.layout}', or arrange the files. "
            f"{ACCEPTED_LAYOUTS}"
        )
    reading = reading or found
    _check_classes(reading, images, folders)
    return reading


def _detect(images: Sequence[str]) -> Reading:
    if ready := _read_ready_splits(images):
        return ready
    scope, root = _training_scope(images)
    return _read_one_tree(images, scope, root)


def _read_one_tree(images: Sequence[str], scope: Sequence[str], root: str) -> Reading:
    direct = [path for path in scope if _parent(path) == root]
    by_name = {label for path in direct if (label := label_in_name(path))}
    # Labels repeat; names at random would give nearly every image its own.
    repeated = len(by_name) <= max(_FEW_LABELS, len(direct) // 2)
    in_one_folder = len(direct) == len(scope)
    if repeated and len(by_name) > 1 and len(direct) * 2 >= len(scope):
        return _label_by_name(images, scope)
    if in_one_folder and (not root or _side_of(root)):
        return _label_by_name(images, scope if repeated else ())
    return _label_by_folder(images, scope, _parent(root) if in_one_folder else root)


def _read_flat(images: Sequence[str]) -> Reading | None:
    reading = _label_by_name(images, images)
    return reading if reading.labels else None


def _read_class_folders(images: Sequence[str]) -> Reading | None:
    scope, root = _training_scope(images)
    in_one_folder = all(_parent(path) == root for path in scope)
    if _read_ready_splits(images) or (in_one_folder and (not root or _side_of(root))):
        return None
    return _label_by_folder(images, scope, _parent(root) if in_one_folder else root)


def _read_ready_splits(images: Sequence[str]) -> Reading | None:
    """Sides are labelled together, each path without its side, so that they agree on what a class is."""
    root = _common_folder(images)
    sides, rests = {}, {}
    for path in images:
        first, *rest = _below(path, root).split("/")
        if rest and (side := _side_of(first)):
            while len(rest) > 1 and _side_of(rest[0]) == side:  # training_set/training_set/cats/1.jpg
                rest = rest[1:]
            sides[path], rests[path] = side, "/".join(rest)
    if "train" not in sides.values() or len(set(sides.values())) < 2:
        return None
    together = sorted(set(rests.values()), key=natural_key)
    inner = _read_one_tree(together, together, _common_folder(together))
    labels = {path: inner.labels[rest] for path, rest in rests.items() if rest in inner.labels}
    labelled_sides = {sides[path] for path in labels}
    if "train" not in labelled_sides or len(labelled_sides) < 2:
        return None
    parents = {
        path[: len(path) - len(rest)] + f"{parent}/"
        for path, rest in rests.items()
        for parent in inner.class_parents
    }
    return Reading(
        layout="ready_splits",
        labels=labels,
        sides={path: sides[path] for path in labels},
        unlabelled={
            path: inner.unlabelled[rests[path]] if path in rests else "no label: it lies outside the sides"
            for path in images
            if path not in labels
        },
        class_parents=frozenset(re.sub("/+", "/", parent).strip("/") for parent in parents),
    )


def _training_scope(images: Sequence[str]) -> tuple[Sequence[str], str]:
    """The images that are there to be learned from, and the folder below which their labels begin."""
    root = _common_folder(images)
    children = {_below(path, root).split("/")[0] for path in images if _parent(path) != root}
    train = next((child for child in sorted(children) if _side_of(child) == "train"), None)
    if train is None:
        return images, root
    scope = [path for path in images if path.startswith(_join(root, train) + "/")]
    others = [path for path in images if not path.startswith(_join(root, train) + "/")]
    by_name = {label_in_name(path) for path in scope} - {None}
    beside_another_side = any(_side_of(child) for child in children - {train})
    if beside_another_side or (len(by_name) > 1 and not any(map(label_in_name, others))):
        return scope, _common_folder(scope)
    return images, root


def _label_by_name(images: Iterable[str], scope: Collection[str]) -> Reading:
    labels = {path: label for path in scope if (label := label_in_name(path))}
    unlabelled = {path: "no label in its name" for path in images if path not in labels}
    return Reading(layout="flat", labels=labels, unlabelled=unlabelled)


def _label_by_folder(images: Iterable[str], scope: Collection[str], root: str) -> Reading:
    labels = {path: _below(path, root).split("/")[0] for path in scope if _parent(path) != root}
    return Reading(
        layout="class_folders",
        labels=labels,
        unlabelled={
            path: "no label: it lies outside the class folders" for path in images if path not in labels
        },
        class_parents=frozenset({root}),
    )


def label_in_name(path: str) -> str | None:
    """The label in a flat name: the text before the first dot, or before a number at the end.

    cat.123.jpg, cat_123.jpg, cat-123.jpg and cat123.jpg give cat; 123.jpg and cat.jpg give None.
    """
    stem = PurePosixPath(path).stem
    if "." in stem:
        label = stem.split(".")[0]
    else:
        match = _NUMBERED_NAME.fullmatch(stem)
        label = match["label"].rstrip("._ -") if match else ""
    return label if any(char.isalpha() for char in label) else None


def _check_classes(reading: Reading, images: Sequence[str], folders: Collection[str]) -> None:
    with_images = {str(parent) for path in images for parent in PurePosixPath(path).parents}
    for folder in sorted(folders, key=natural_key):
        if folder not in with_images and _parent(folder) in reading.class_parents:
            raise BadDump(
                f"class folder '{folder}' holds no images; the other class folders do. "
                "Put images into it, or take it out of the dump."
            )
    if not reading.labels:
        raise BadDump(f"no image has a label: the names are like {_examples(images)}. {ACCEPTED_LAYOUTS}")
    sides = [name for name in reading.classes if reading.class_parents and _side_of(name)]
    if len(sides) > 1:
        raise BadDump(
            f"the folders {', '.join(sides)} look like the sides of a split, not like classes, and what they "
            f"hold is not laid out as ready splits: {_examples(images)}. {ACCEPTED_LAYOUTS}"
        )
    if len(reading.classes) == 1:
        (only,) = reading.classes
        raise BadDump(
            f"it holds one class only, '{only}' ({len(reading.labels)} images such as "
            f"{_examples(list(reading.labels))}); a classifier needs two at least. {ACCEPTED_LAYOUTS}"
        )


def _examples(paths: Sequence[str]) -> str:
    """A few paths, one of each folder before a second of any."""
    seen: Counter[str] = Counter()
    ranked = []
    for path in paths:
        ranked.append((seen[_parent(path)], path))
        seen[_parent(path)] += 1
    return ", ".join(path for _, path in sorted(ranked, key=lambda pair: (pair[0], natural_key(pair[1])))[:3])


def _side_of(folder: str) -> Side | None:
    match = _SIDE_NAME.fullmatch(PurePosixPath(folder).name)
    return next(side for side, text in match.groupdict().items() if text) if match else None


def _common_folder(paths: Sequence[str]) -> str:
    """The deepest folder that holds all paths; '' is the dump itself."""
    first, last = (min(paths).split("/")[:-1], max(paths).split("/")[:-1])
    shared = 0
    while shared < min(len(first), len(last)) and first[shared] == last[shared]:
        shared += 1
    return "/".join(first[:shared])


def _parent(path: str) -> str:
    return path.rpartition("/")[0]


def _below(path: str, folder: str) -> str:
    return path[len(folder) + 1 :] if folder else path


def _join(folder: str, name: str) -> str:
    return f"{folder}/{name}" if folder else name


_READERS = {
    "flat": _read_flat,
    "class_folders": _read_class_folders,
    "ready_splits": _read_ready_splits,
}
