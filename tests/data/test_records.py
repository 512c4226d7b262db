"""Files and hub datasets: what is right comes in as it is, what is wrong is named with its place."""
import codecs
import json
import unicodedata

import pytest
from datasets import Dataset, Features, List, Value, load_dataset

from course_lib.data.records import load_records, read_appended

QA = ("question", "answer")
ROW = {"question": "왜?", "answer": "그래서 그렇습니다."}
LINE = json.dumps(ROW, ensure_ascii=False).encode()


@pytest.fixture
def file(tmp_path):
    """A function that writes bytes to a file and returns its path."""
    def write(content, name="data.jsonl"):
        path = tmp_path / name
        path.write_bytes(content)
        return path
    return write


# --- what is right -----------------------------------------------------------------------------------------

@pytest.mark.parametrize("content", [
    LINE + b"\n" + LINE + b"\n",
    LINE + b"\n" + LINE,                                   # no line break at the end
    b"\xef\xbb\xbf" + LINE + b"\r\n" + LINE + b"\r\n",     # a byte order mark and Windows line ends
    b"\n\n" + LINE + b"\n  \n" + LINE + b"\n\n",           # blank lines
    json.dumps(ROW).encode() + b"\n" + LINE,               # escaped and plain
])
def test_json_lines_in_every_shape(file, content):
    dataset = load_records(file(content), QA)
    assert dataset.column_names == list(QA) and dataset.to_list() == [ROW, ROW]


@pytest.mark.parametrize("content", [
    b"[" + LINE + b",\n" + LINE + b"]", codecs.BOM_UTF8 + b" \r\n[" + LINE + b"," + LINE + b"]",
    LINE + b"\n" + LINE])
def test_a_json_file_is_a_list_or_lines(file, content):
    assert load_records(file(content, "data.json"), QA).to_list() == [ROW, ROW]


def test_parquet(tmp_path):
    Dataset.from_list([{**ROW, "id": 3}] * 2).to_parquet(tmp_path / "data.PARQUET")
    assert load_records(tmp_path / "data.PARQUET", ("id", *QA)).to_list() == [{"id": 3, **ROW}] * 2


def test_columns_can_be_renamed_and_reached(file):
    path = file(json.dumps({"ko": ROW, "a.b": 1, "extra": None}).encode())
    assert load_records(str(path), {"instruction": "ko.question", "number": "a.b"}).to_list() == [
        {"instruction": "왜?", "number": 1}]


def test_a_split_is_chosen_by_its_field(file):
    path = file(b"".join(json.dumps({"split": split, "n": n}).encode() + b"\n"
                         for n, split in enumerate(["a", "b", "a"])))
    assert load_records(path, ["n"], split="a")["n"] == [0, 2]
    with pytest.raises(ValueError, match="data.jsonl holds no records of the split 'c'"):
        load_records(path, ["n"], split="c")


def test_decomposed_korean_is_composed(file):
    nfd = unicodedata.normalize("NFD", "한국어")
    row = {"text": nfd, "list": [nfd], "nested": {"deep": nfd}}
    assert load_records(file(json.dumps(row).encode()), list(row)).to_list() == [
        {"text": "한국어", "list": ["한국어"], "nested": {"deep": "한국어"}}]


def test_line_separators_inside_a_text_split_nothing(file):
    row = {"text": "one\u2028two\x85three\r"}
    assert load_records(file(json.dumps(row, ensure_ascii=False).encode()), ["text"]).to_list() == [row]


def test_a_huge_line_and_many_types(file):
    row = {"text": "가" * 3_000_000, "zero": 0, "no": False, "score": 1, "list": [1, 2.5]}
    dataset = load_records(file(json.dumps(row).encode() + b"\n"
                                + json.dumps({**row, "score": 0.5}).encode()), list(row))
    assert dataset[0] == row and dataset["score"] == [1.0, 0.5]
    assert dataset.features == Features({"text": Value("string"), "zero": Value("int64"), "no": Value("bool"),
                                         "score": Value("float64"), "list": List(Value("float64"))})


# --- what is wrong -----------------------------------------------------------------------------------------

def row_bytes(**changes):
    return json.dumps({**ROW, **changes}).encode()


@pytest.mark.parametrize("content, words", [
    (LINE + b'\n{"question": "why", "answer"\n',
     r"data.jsonl, line 2, column 29: no valid JSON \(Expecting ':' delimiter\)"),
    (LINE + b"\n\n" + LINE[:20], "data.jsonl, line 3, column .*: no valid JSON"),
    (b'{"question": "why"}\n', "data.jsonl, line 1: column 'answer' is missing; there are question"),
    (LINE + b"\n[1, 2]\n", "line 2: holds a list; each record must be an object"),
    (LINE + b"\n" + row_bytes(answer="  ") + b"\n", "line 2: column 'answer' is empty"),
    (row_bytes(answer=None), "line 1: column 'answer' is empty"),
    (row_bytes(answer=[]), "line 1: column 'answer' is empty"),
    (row_bytes(answer=["a", ""]), "line 1: column 'answer' is empty"),
    (LINE + b"\n" + row_bytes(answer=3),
     "line 2: column 'answer' holds a number, but in data.jsonl, line 1 a text"),
    (row_bytes(answer=["a"]) + b"\n" + row_bytes(answer=["a", 1]),
     "line 2: .* holds a list of number and text, but in"),
    (b'{"question": "why", "answer": "\\ud83d"}', r"line 1: column 'answer' holds half of a surrogate pair"),
    (LINE + b"\r\n" + "{\"question\": \"왜\"}".encode("cp949"),
     f"line 2, byte {len(LINE) + 16} of the file: not UTF-8"),
    (b"\xef\xbb\xbf" + b'{"question": "\xff', "line 1, byte 17 of the file: not UTF-8"),
    ("{}".encode("utf-16"), "line 1, byte 0 of the file: not UTF-8.*UTF-16"),
    (b"", "data.jsonl holds no records"), (b"\xef\xbb\xbf\n\r\n", "data.jsonl holds no records"),
])
def test_a_damaged_line_is_named(file, content, words):
    with pytest.raises(ValueError, match=words):
        load_records(file(content), QA)


@pytest.mark.parametrize("content, words", [
    (b"[" + LINE + b',\n{"question": }]', "data.json, line 2, column 14: no valid JSON"),
    (b"[" + LINE + b',\n{"question": "\xb0\xa1"}]',
     f"data.json, line 2, byte {len(LINE) + 17} of the file: not UTF-8"),
    (b"[" + LINE + b',{"question": 1}]',
     "data.json, entry 1: column 'question' holds a number, but in data.json, entry 0 a"),
])
def test_a_damaged_list_is_named(file, content, words):
    with pytest.raises(ValueError, match=words):
        load_records(file(content, "data.json"), QA)


def test_the_byte_that_is_named_is_the_byte(file):
    """The offset leads to the damage, also behind a byte order mark and long lines."""
    content = codecs.BOM_UTF8 + (LINE + b"\n") * 500 + b'{"question": "caf\xe9 au lait"}\n'
    with pytest.raises(ValueError,
                       match=f"line 501, byte {content.index(0xe9, 3 + 500 * len(LINE))} of the file"):
        load_records(file(content), QA)


def test_a_damaged_parquet_file_is_named(file, tmp_path):
    with pytest.raises(ValueError, match="data.parquet: cannot be read as Parquet"):
        load_records(file(b"PAR1 no PAR1", "data.parquet"), QA)
    Dataset.from_dict({"question": ["a", None], "answer": ["b", "c"]}).to_parquet(tmp_path / "gap.parquet")
    with pytest.raises(ValueError, match="gap.parquet, row 1: column 'question' is empty"):
        load_records(tmp_path / "gap.parquet", QA)


@pytest.mark.parametrize("source, error, words", [
    ("nowhere.jsonl", FileNotFoundError, "there is no file 'nowhere.jsonl'"),
    ("folder/nowhere.jsonl", FileNotFoundError, "there is no file 'folder/nowhere.jsonl'"),
    ("table.csv", ValueError, "source is 'table.csv'; it must be a hub id"),
])
def test_a_wrong_source_is_named(source, error, words):
    with pytest.raises(error, match=words):
        load_records(source, QA)


# --- a file that grows -------------------------------------------------------------------------------------

@pytest.mark.parametrize("tail, count", [(b"", 1), (LINE, 2), (LINE[:20], 1), (b"\xec\x99", 1)])
def test_a_file_that_grows_ends_with_a_whole_line(file, tail, count):
    """Cut off in the middle of a line or of a character, or without its last line break."""
    path = file(LINE + b"\n" + tail)
    assert read_appended(path, QA) == [ROW] * count
    assert path.read_bytes() == (LINE + b"\n") * count


def test_a_file_that_is_not_there_yet(tmp_path):
    assert read_appended(tmp_path / "new" / "data.jsonl", QA) == [] and (tmp_path / "new").is_dir()


# --- the hub -----------------------------------------------------------------------------------------------

@pytest.fixture
def offline(monkeypatch, tmp_path):
    """The hub is out of reach and nothing is cached."""
    import datasets
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path))


def test_an_unreachable_hub_is_named(offline):
    with pytest.raises(ConnectionError,
                       match="the hub cannot be reached, and owner/name is not in its local cache"):
        load_records("owner/name", QA)


def test_an_unknown_dataset_is_named(monkeypatch):
    from datasets.exceptions import DatasetNotFoundError

    def unknown(name, split):
        raise DatasetNotFoundError(f"Dataset '{name}' doesn't exist")

    monkeypatch.setattr("datasets.load_dataset", unknown)
    with pytest.raises(LookupError, match="the hub has no dataset 'owner/name'"):
        load_records("owner/name", QA)


@pytest.mark.parametrize("split, asked", [(None, "train"), ("test[:2]", "test[:2]")])
def test_a_hub_dataset_is_checked_like_a_file(monkeypatch, split, asked):
    """No field `split` is asked for there, and nothing beyond name and split is handed on: no remote code."""
    calls = []
    rows = Dataset.from_list([{"instruction": "a", "output": "b"}, {"instruction": "a", "output": ""}])
    monkeypatch.setattr("datasets.load_dataset", lambda *args,
                        **options: calls.append((args, options)) or rows)
    assert load_records("owner/name", {"question": "instruction"}, split=split)["question"] == ["a", "a"]
    assert calls == [(("owner/name",), {"split": asked})]
    with pytest.raises(ValueError, match="owner/name, row 1: column 'output' is empty"):
        load_records("owner/name", {"answer": "output"}, split=split)


def test_datasets_runs_no_remote_code(tmp_path):
    """What the docstring says of the library: a loading script is refused, not run."""
    script = tmp_path / "script" / "script.py"
    script.parent.mkdir()
    script.write_text("raise SystemExit('remote code ran')")
    with pytest.raises(Exception,
                       match="scripts are no longer supported|[Nn]o .*data files|doesn't contain any"):
        load_dataset(str(script.parent))


def test_a_folder_is_no_hub_id(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "owner" / "name").mkdir(parents=True)
    with pytest.raises(ValueError, match="source is 'owner/name'"):
        load_records("owner/name", QA)
