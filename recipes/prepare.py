"""`supernet prepare`: make a data set."""

from __future__ import annotations


def prepare(
    out: str, dataset: str = "libreoffice_en_de", root: str | None = None, overwrite: bool = False
) -> dict[str, int]:
    """Make a data set of files: libreoffice_en_de, sentence pairs from the help pages of LibreOffice.

    Args:
        out: folder to write: train, valid and test, each as two files of aligned lines.
        dataset: libreoffice_en_de, English and German (MPL-2.0).
        root: folder in which Debian's libreoffice-help-en-us and libreoffice-help-de are unpacked, together or each in
            a folder of its own; fetched with apt-get if left out.
        overwrite: let it replace an earlier one in `out`.

    Returns:
        {"pages", "pairs": all found, "clean": those kept, "train", "valid", "test": of them in each split}
    """
    if dataset != "libreoffice_en_de":
        raise ValueError(f"dataset: {dataset!r} is not one that can be made; there is libreoffice_en_de")
    from hat.libreoffice import make

    return make(out, root, overwrite=overwrite)
