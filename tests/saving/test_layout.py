"""A header that lies about its tensors, or that two readers may take for two things, is refused; an odd one is read."""

import pytest

from relay_hf import PrefixFileError
from tests.fuzz_files.container import bytes_of, file_of, parts_of
from tests.support.generating import generate
from tests.support.tiny_models import tiny_model

from .common import ROWS, assert_served, patched, saved


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    path = tmp_path_factory.mktemp("saved") / "p"
    saved(path)
    return path.read_bytes()


def nothing(file):
    return bytes_of(file.header(), file.data)


def bytes_behind(file):
    return bytes_of(file.header(), file.data + b"\0")


def last_byte_missing(file):
    return bytes_of(file.header(), file.data[:-1])


def two_in_one_place(file):
    first, second = file.tensor_entries[-2:]
    second["data_offsets"] = first["data_offsets"]
    return bytes_of(file.header(), file.data[: first["data_offsets"][1]])


def bytes_of_two(file):
    file.tensor_entries[-2]["data_offsets"][1] += 8
    return bytes_of(file.header(), file.data)


def bytes_of_none(file):
    last = file.tensor_entries[-1]
    start, end = last["data_offsets"]
    last["data_offsets"] = [start + 8, end + 8]
    return bytes_of(file.header(), file.data[:start] + bytes(8) + file.data[start:])


def end_before_start(file):
    file.tensor_entries[-1]["data_offsets"].reverse()
    return bytes_of(file.header(), file.data)


def other_size(file):
    file.tensor_entries[-1]["shape"][0] += 1
    return bytes_of(file.header(), file.data)


def other_dtype(file):
    file.tensor_entries[-1]["dtype"] = "F64"
    return bytes_of(file.header(), file.data)


def elements_beyond_64_bits(file):
    """As many as there are, if they are counted in 64 bits."""
    file.tensor_entries[-1]["shape"] += [3, pow(3, -1, 2**64)]
    return bytes_of(file.header(), file.data)


def offsets_beyond_64_bits(file):
    last = file.tensor_entries[-1]
    last["data_offsets"] = [offset + 2**64 for offset in last["data_offsets"]]
    return bytes_of(file.header(), file.data)


def negative_sizes(file):
    last = file.tensor_entries[-1]
    last["shape"] = [-size for size in last["shape"][:2]] + last["shape"][2:]
    return bytes_of(file.header(), file.data)


def fractions(file):
    last = file.tensor_entries[-1]
    last["shape"] = [float(size) for size in last["shape"]]
    return bytes_of(file.header(), file.data)


def deep(file):
    return bytes_of("[" * 100_000, file.data)


def long_header(file):
    return (2**63 - 1).to_bytes(8, "little") + file.data


def no_header(file):
    return bytes(8) + file.data


def no_object(file):
    return bytes_of("[]", b"")


def tensor_twice(file):
    file.entries.append(file.entries[-1])
    return bytes_of(file.header(), file.data)


def tensor_twice_and_once_wrong(file):
    name, value = file.entries[-1]
    file.entries.insert(1, (name, {**value, "shape": [7], "data_offsets": [0, 28]}))
    return bytes_of(file.header(), file.data)


def tensor_twice_in_other_letters(file):
    name, value = file.entries[-1]
    file.entries.append(("twice", value))
    return bytes_of(file.header().replace('"twice"', f'"\\u{ord(name[0]):04x}{name[1:]}"'), file.data)


def metadata_twice(file):
    file.entries.append(file.entries[0])
    return bytes_of(file.header(), file.data)


def record_twice(file):
    return bytes_of(file.header().replace('{"relay_hf":', '{"relay_hf": "{}", "relay_hf":', 1), file.data)


LIES = [
    bytes_behind, last_byte_missing, two_in_one_place, bytes_of_two, bytes_of_none, end_before_start, other_size,
    other_dtype, elements_beyond_64_bits, offsets_beyond_64_bits, negative_sizes, fractions, deep, long_header,
    no_header, no_object, tensor_twice, tensor_twice_and_once_wrong, tensor_twice_in_other_letters, metadata_twice,
    record_twice,
]  # fmt: skip


def changed(path, original, change):
    path.write_bytes(change(file_of(parts_of(original))))


@pytest.mark.parametrize("change", LIES)
@pytest.mark.parametrize("mmap", [False, True])
def test_a_header_that_lies_or_has_a_name_twice(tmp_path, original, change, mmap):
    changed(tmp_path / "p", original, change)
    model = patched()
    with pytest.raises(PrefixFileError, match=rf"{tmp_path / 'p'} is damaged, or no safetensors file \(.+\)\. Give a"):
        model.relay.load(tmp_path / "p", mmap=mmap)
    assert not model.relay.prefixes


def blanks(file):
    return bytes_of(f" \n{file.header()}\t ", file.data)


def other_order(file):
    file.entries.reverse()
    return bytes_of(file.header(), file.data)


def tensors_between_places_in_memory(file):
    """No element begins at a multiple of its size."""
    header = file.header().encode()
    header += b" " * (-len(header) % 8 + 1)
    return len(header).to_bytes(8, "little") + header + file.data


@pytest.mark.parametrize("change", [nothing, blanks, other_order, tensors_between_places_in_memory])
@pytest.mark.parametrize("mmap", [False, True])
def test_a_header_that_is_odd_and_right(tmp_path, original, change, mmap):
    changed(tmp_path / "p", original, change)
    model = patched()
    model.relay.load(tmp_path / "p", mmap=mmap)
    assert_served(model, generate(tiny_model("llama"), ROWS))


def test_what_is_written_to_a_mapped_tensor_does_not_reach_the_file(tmp_path):
    saved(tmp_path / "p")
    before = (tmp_path / "p").read_bytes()
    model = patched()
    (prefix,) = model.relay.load(tmp_path / "p", mmap=True)
    prefix.run.layers[0].kv.segment.key.fill_(7)
    assert (tmp_path / "p").read_bytes() == before
    (again,) = patched().relay.load(tmp_path / "p", mmap=True)
    assert not (again.run.layers[0].kv.segment.key == 7).any()
