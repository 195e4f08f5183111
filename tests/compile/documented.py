"""documented.py FOLDER: every public definition at namespace scope, and every public member function of a public type,
has a comment /// directly before it.

Public is what is not in a namespace named detail, or ..._detail. Classes, enumerations, concepts, functions and aliases
count; forward declarations, deduction guides, explicit instantiations and operators do not. Of members, those do not
count either that are defaulted, deleted or overridden, nor destructors. One comment is enough for definitions of one
line each that stand directly below one another, and an alias may have its comment behind it, as ///<.
Prints what is missing, as file:line, and exits with 1 if anything is.
"""

import pathlib
import re
import sys


def blanked(text):
    """The text with comments, literals and preprocessor lines blanked out, of the same length and lines."""
    pattern = re.compile(
        r'//[^\n]*|/\*.*?\*/|"(?:\\.|[^"\\\n])*"|(?<![0-9a-fA-F])\'(?:\\.|[^\'\\\n])*\'|^[ \t]*#(?:\\\n|[^\n])*',
        re.S | re.M)
    return pattern.sub(lambda found: re.sub(r"[^\n]", " ", found.group()), text)


def closing(text, at):
    """The position behind the bracket that closes the one at `at`."""
    pairs = {"{": "}", "(": ")", "[": "]"}
    depth = []
    while True:
        c = text[at]
        if c in pairs:
            depth.append(pairs[c])
        elif depth and c == depth[-1]:
            depth.pop()
            if not depth:
                return at + 1
        at += 1


NAMESPACE = re.compile(r"\s*(?:inline\s+)?namespace\b\s*([\w:]*)\s*\{")
TYPE = re.compile(r"(?:class|struct|union|enum(?:\s+class)?)\s+(?:\[\[[^\]]*\]\]\s*)?(?:\w+\s+)*?([\w:]+)")
# Parameters at the end of a head, with brackets in brackets.
PARAMETERS = re.compile(r"\([^()]*(?:\([^()]*(?:\([^()]*\)[^()]*)*\)[^()]*)*\)$")
# Heads of members that are no functions, and of functions that need no comment.
NO_FUNCTION = re.compile(r"(struct|class|enum|union|using|friend|static_assert|~|virtual\s+~)\b|~")
NEEDS_NO_COMMENT = re.compile(
    r"=\s*(delete|default)\s*$|\boverride\b|\boperator\b|=[^=]*\(|^[^(]*(?<![=<>!])=(?!=)")


def head_of(statement):
    """A statement without its template head, requires clauses stay."""
    statement = statement.strip()
    while statement.startswith("template"):
        at, depth = statement.index("<"), 0
        while True:
            depth += {"<": 1, ">": -1}.get(statement[at], 0)
            at += 1
            if depth == 0:
                break
        statement = statement[at:].strip()
    return statement


def statements(text, first=0, last=None, public=True):
    """(first, last, head) of each statement at namespace scope that is public."""
    at, last = first, len(text) if last is None else last
    while at < last:
        space = re.compile(r"[\s;]*").match(text, at, last)
        at = space.end()
        if at >= last:
            return
        namespace = NAMESPACE.match(text, at, last)
        if namespace:
            end = closing(text, namespace.end() - 1)
            inner = public and not re.search(r"(^|_|:)detail$", namespace.group(1)) and namespace.group(1) != ""
            yield from statements(text, namespace.end(), end - 1, inner)
            at = end
            continue
        start = at
        while at < last and text[at] != ";":
            if text[at] in "([":
                at = closing(text, at)
            elif text[at] == "{":
                before = text[start:at].rstrip()
                expression = re.search(r"\brequires\s*$", PARAMETERS.sub("", before))
                head = head_of(before)
                body = at + 1
                at = closing(text, at)
                if public and re.match(r"(?:class|struct)\b", head):
                    yield from members(text, body, at - 1, head.startswith("struct"))
                value = re.search(r"(?<![=!<>])=(?!=)", re.sub(r"\([^()]*\)", "", head))
                if expression or TYPE.match(head) or value or head.startswith("concept"):
                    continue
                break  # the body of a function
            else:
                at += 1
        if public:
            yield start, at, head_of(text[start:at])


def members(text, first, last, public):
    """(first, last, head) of each public member function of a type whose body is text[first:last]."""
    at = first
    while at < last:
        at = re.compile(r"[\s;]*").match(text, at, last).end()
        access = re.compile(r"(public|protected|private)\s*:").match(text, at, last)
        if access:
            public, at = access.group(1) == "public", access.end()
            continue
        start = at
        while at < last and text[at] != ";":
            if text[at] in "([{":
                body = text[at] == "{" and text[start:at].rstrip()
                at = closing(text, at)
                nested = body and re.match(r"(class|struct)\b", head_of(body))
                if nested and public:
                    inside = text.index("{", start + len(body)) + 1
                    yield from members(text, inside, at - 1, nested.group(1) == "struct")
                if body and not re.search(r"(\brequires|[,:(]\s*\w+)$", re.sub(r"\([^()]*\)$", "", body)):
                    break
            else:
                at += 1
        head = head_of(text[start:at]).strip()
        plain = re.sub(r"\{.*", "", head, flags=re.S)
        if public and "(" in plain and not NO_FUNCTION.match(head) and not NEEDS_NO_COMMENT.search(plain):
            yield start, at, head


def name_of(head):
    """The name that a head defines, None for what needs no comment."""
    if re.match(r"static_assert|extern\b|friend|namespace\b|using namespace\b", head):
        return None
    if "operator" in head.split("{")[0]:
        return None
    kind = TYPE.match(head)
    if kind:
        return kind.group(1) if "{" in head else None  # else a forward declaration, or an instantiation
    if head.startswith("using"):
        return None if "=" not in head else head.split()[1]
    if head.startswith("concept"):
        return head.split()[1]
    if "->" in head and "(" in head and re.match(r"\w+\(", head):
        return None  # a deduction guide
    head = re.sub(r"\bdecltype\(auto\)|__launch_bounds__\((?:[^()]|\([^()]*\))*\)", "", head)
    function = re.search(r"(\w+)\s*\(", re.sub(r"^requires\s*\([^{]*?\)\s*(?=\w|\[)", "", head))
    variable = re.search(r"(\w+)\s*(?:\[[^\]]*\]\s*)?[={]", head)
    if not function or variable and variable.start() < function.start():
        return None
    member = head[:head.find(function.group(0))].endswith("::")  # its comment stands in the class
    return None if member else function.group(1)


def headers(root):
    return sorted([*root.rglob("*.hpp"), *root.rglob("*.cuh")])


def main():
    root = pathlib.Path(sys.argv[1])
    missing = counted = 0
    for path in headers(root):
        text = path.read_text()
        lines = text.split("\n")
        grouped = -2  # the line of a documented definition of one line
        for first, last, head in statements(blanked(text)):
            begin, end = text.count("\n", 0, first), text.count("\n", 0, last)
            documented = (
                begin > 0 and lines[begin - 1].lstrip().startswith("///")
                or begin == end and (grouped == begin - 1 or "///<" in lines[begin]))
            grouped = begin if documented and begin == end else -2
            name = name_of(head)
            if name is None:
                continue
            counted += 1
            if not documented:
                missing += 1
                print(f"{path.relative_to(root.parent)}:{begin + 1}: {name} has no /// directly before it")
    print(f"{counted} public definitions, {missing} without a comment")
    if counted < 900:
        print("fewer than there are: this script does not see them")
    return 1 if missing or counted < 900 else 0


if __name__ == "__main__":
    sys.exit(main())
