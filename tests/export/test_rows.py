from export.rows import recombined
from serve.encoder import TextInput


def test_repair_rows_are_made_of_training_rows_and_equal_none_of_them() -> None:
    texts: list[TextInput] = [f"a{n} b{n} c{n} d{n}" for n in range(40)]
    rows = recombined(texts, 30, seed=0)
    assert len(rows) == 30
    assert not set(rows) & set(texts)
    for row in rows:
        start, end = str(row).split()[1][1:], str(row).split()[2][1:]
        assert row == f"a{start} b{start} c{end} d{end}"
    assert all(row[0][1:] != row[1][1:] for row in recombined([(f"a{n}", f"b{n}") for n in range(40)], 40, seed=0))


def test_repair_rows_of_texts_without_spaces_equal_none_of_them_either() -> None:
    texts: list[TextInput] = ["这部电影很好", "我不喜欢这个故事", "演员非常出色", "单词"]
    assert not set(recombined(texts, 4, seed=0)) & set(texts)
