"""includes.py FOLDER: every header includes what declares the names of std:: that it uses, and the headers of kvc that
define the types it names, and does not depend on what others happen to include.

FOLDER is include/kvc. Of std:: the names in STD are looked at; of kvc the classes, enumerations, concepts and aliases
at namespace scope whose names mean nothing else anywhere: no member, no parameter, no type of another header.
kvc/fwd.hpp stands for the header of a type that it declares, and a part of a header need not include the whole.
Prints what is missing, as file: name <header>, and exits with 1 if anything is.
"""

import pathlib
import re
import sys

# Where several headers declare a name, each of them will do; the first one is the one to add.
STD = {
    "algorithm": "adjacent_find all_of any_of clamp copy copy_if copy_n count count_if equal fill fill_n find find_if "
                 "find_if_not for_each lexicographical_compare lower_bound max max_element min min_element "
                 "minmax_element none_of nth_element remove_if replace_if rotate sort stable_sort transform unique "
                 "upper_bound ranges::all_of ranges::any_of ranges::binary_search ranges::copy ranges::copy_if "
                 "ranges::count ranges::equal ranges::fill ranges::find ranges::find_if ranges::for_each "
                 "ranges::lower_bound ranges::max ranges::min ranges::mismatch ranges::reverse ranges::sort "
                 "ranges::stable_sort ranges::upper_bound",
    "array": "array",
    "atomic": "atomic atomic_ref memory_order_acquire memory_order_relaxed memory_order_release memory_order_seq_cst",
    "bit": "bit_cast bit_ceil bit_floor bit_width countl_zero countr_one countr_zero endian popcount rotl rotr",
    "charconv": "from_chars to_chars",
    "chrono": "chrono::ceil chrono::duration chrono::hours chrono::microseconds chrono::milliseconds "
              "chrono::nanoseconds chrono::seconds chrono::steady_clock",
    "cmath": "abs copysign cos exp exp2 ilogb isfinite isnan ldexp log log2 pow sin sqrt tanh",
    "compare": "strong_ordering weak_ordering partial_ordering",
    "concepts": "constructible_from convertible_to copyable default_initializable derived_from floating_point integral "
                "invocable movable regular same_as semiregular signed_integral unsigned_integral",
    "condition_variable": "condition_variable",
    "cstddef": "byte max_align_t nullptr_t ptrdiff_t size_t to_integer",
    "cstdint": "int8_t int16_t int32_t int64_t uint8_t uint16_t uint32_t uint64_t uintptr_t",
    "cstdio": "fprintf printf snprintf",
    "cstdlib": "abort getenv",
    "cstring": "memcmp memcpy memmove memset strlen",
    "deque": "deque",
    "exception": "current_exception exception exception_ptr rethrow_exception",
    "filesystem": "filesystem::create_directories filesystem::directory_iterator filesystem::is_directory "
                  "filesystem::path",
    "functional": "function greater invoke less ref",
    "initializer_list": "initializer_list",
    "iterator": "advance back_inserter next prev",
    "limits": "numeric_limits",
    "list": "list",
    "map": "map",
    "memory": "addressof destroy_at make_shared make_unique shared_ptr unique_ptr",
    "mutex": "defer_lock lock_guard mutex unique_lock",
    "new": "align_val_t bad_alloc launder",
    "numeric": "accumulate iota lcm partial_sum",
    "optional": "nullopt optional",
    "queue": "priority_queue",
    "random": "mt19937_64 random_device",
    "ranges": "ranges::begin ranges::borrowed_range ranges::contiguous_range ranges::data ranges::forward_range "
              "ranges::input_range ranges::random_access_range ranges::range_difference_t "
              "ranges::range_reference_t ranges::range_value_t ranges::size ranges::sized_range",
    "set": "set",
    "shared_mutex": "shared_lock shared_mutex",
    "span": "as_bytes as_writable_bytes span",
    "stdexcept": "invalid_argument logic_error out_of_range runtime_error",
    "string": "string to_string",
    "string_view": "string_view string_view_literals",
    "system_error": "errc error_code generic_category make_error_code system_error",
    "thread": "this_thread::sleep_for this_thread::yield thread",
    "tuple": "forward_as_tuple tuple",
    "type_traits": "conditional_t has_unique_object_representations_v integral_constant invoke_result_t "
                   "is_arithmetic_v is_const_v is_same_v is_trivially_copyable_v remove_const_t remove_cvref_t "
                   "remove_reference_t type_identity type_identity_t",
    "unordered_map": "unordered_map",
    "unordered_set": "unordered_set",
    "utility": "as_const cmp_equal cmp_greater cmp_less declval exchange forward in_place_index integer_sequence "
               "make_integer_sequence move pair piecewise_construct swap",
    "variant": "get_if holds_alternative in_place_index monostate variant visit",
    "vector": "vector",
}
# Each container declares these too.
ITERATORS = {"array", "deque", "iterator", "list", "map", "set", "span", "string", "string_view", "unordered_map",
             "unordered_set", "vector"}
DEFINED = re.compile(r"^(?:class|struct|union|enum(?: class)?|concept|using) (?:alignas\([^)]*\) )?(\w+)"
                     r"(?= *(?:final)? *(?::[^:]|\{|=|$))", re.M)
# Other things of that name: members, parameters of templates, enumerators, members that are named with their class.
OTHERS = re.compile(r"^ +(?:class|struct|union|enum(?: class)?|using|concept) (\w+)"
                    r"|\b(?:class|typename|auto)(?:\.\.\.)? (\w+)[,>=\s]"
                    r"|^ +(?:template <.*> *)?\b\w+(?:::\w+)? (\w+)[,>][^;]*$", re.M)
DECLARED = re.compile(r"^(?:template <.*> *)?(?:class|struct|enum class) (\w+)(?: : [\w:]+)?;", re.M)


def code_of(text):
    """The text without comments and literals."""
    pattern = r'//[^\n]*|/\*.*?\*/|"(?:\\.|[^"\\\n])*"|(?<![0-9a-fA-F])\'(?:\\.|[^\'\\\n])*\''
    return re.sub(pattern, " ", re.sub(r"^[ \t]*#[ \t]*include[^\n]*", "", text, flags=re.M), flags=re.S)


def main():
    root = pathlib.Path(sys.argv[1])
    texts = {path.relative_to(root.parent).as_posix(): path.read_text(encoding="utf-8")
             for path in sorted([*root.rglob("*.hpp"), *root.rglob("*.cuh")])}
    code = {name: code_of(text) for name, text in texts.items()}
    includes = {name: set(re.findall(r'#\s*include\s*[<"]([^>"]+)[>"]', text)) for name, text in texts.items()}

    std = {}
    for header, names in STD.items():
        for name in names.split():
            std.setdefault(name, []).append(header)
    for name in ("begin", "data", "empty", "end", "size", "ssize"):
        std[name] = ["iterator", *sorted(ITERATORS - {"iterator"})]

    of = {}
    for header, text in code.items():
        for name in DEFINED.findall(text):
            of.setdefault(name, set()).add(header)
    forward = set(DECLARED.findall(code["kvc/fwd.hpp"]))
    others = {name for text in code.values() for found in OTHERS.findall(text) for name in found}
    ours = {name: next(iter(headers)) for name, headers in of.items() if len(headers) == 1 and name not in others}

    def reaches(header, target):
        """Whether `header` includes `target`, by way of others too."""
        seen, to_see = set(), [header]
        while to_see:
            for include in includes.get(to_see.pop(), set()) - seen:
                seen.add(include)
                to_see.append(include)
        return target in seen

    missing = 0
    for header, text in code.items():
        needs = {}
        for name in re.findall(r"\bstd::((?:chrono::|filesystem::|ranges::|this_thread::)?\w+)", text):
            if name in std and not includes[header] & set(std[name]):
                needs.setdefault(f"<{std[name][0]}>", "std::" + name)
        for name in set(re.findall(r"(?<![.>])\b[A-Z]\w*", text)) & ours.keys():
            if ours[name] != header and ours[name] not in includes[header] and \
                    not (name in forward and "kvc/fwd.hpp" in includes[header]) and not reaches(ours[name], header):
                needs.setdefault(f'"{ours[name]}"', name)
        for include, name in sorted(needs.items()):
            print(f"{header}: {name} {include}")
            missing += 1
    print(f"{len(code)} headers, {missing} includes are missing")
    return 1 if missing else 0


if __name__ == "__main__":
    sys.exit(main())
