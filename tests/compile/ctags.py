"""ctags.py FOLDER: Universal Ctags sees the public classes, enumerations and functions of the headers.

Counts them, prints which are missing, and exits with 1 if any is; with 4, a skipped test, where there is no Universal
Ctags.
"""

import pathlib
import shutil
import subprocess
import sys

from documented import blanked, headers, name_of, statements


def main():
    root = pathlib.Path(sys.argv[1])
    ctags = shutil.which("ctags-universal") or shutil.which("ctags")
    version = subprocess.run([ctags, "--version"], capture_output=True, text=True).stdout if ctags else ""
    if "Universal Ctags" not in version:
        print("skipped: Universal Ctags is not installed (Debian: universal-ctags)")
        return 4
    seen = missing = 0
    for path in headers(root):
        tags = subprocess.run(
            [ctags, "-f", "-", "--language-force=C++", "--kinds-C++=csugft", "-I", "__launch_bounds__+", str(path)],
            capture_output=True, text=True, check=True).stdout
        names = {line.split("\t")[0] for line in tags.splitlines()}
        for _, _, head in statements(blanked(path.read_text())):
            name = name_of(head)
            if name is None or head.startswith("concept"):
                continue
            if name in names:
                seen += 1
            else:
                missing += 1
                print(f"{path.relative_to(root.parent)}: {name}: {head.splitlines()[0][:90]}")
    print(f"{seen} public definitions seen, {missing} not")
    return 1 if missing or seen < 300 else 0


sys.exit(main())
