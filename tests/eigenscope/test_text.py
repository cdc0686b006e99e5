from eigenscope.text import markdown_table


def test_columns_are_aligned_and_markdown():
    table = markdown_table(["name", "n"], [["a", "1"], ["longer", "22"]])
    assert table.splitlines() == ["| name   |   n |", "| ------ | --: |", "| a      |   1 |", "| longer |  22 |"]
