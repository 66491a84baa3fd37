"""Each format becomes headings and blocks with their places; each bad file a reason."""

from __future__ import annotations

from io import BytesIO
from zipfile import ZipFile

import pytest

from llmos.memory.ingest.document import Block, FileRefused, Heading
from llmos.memory.ingest.parsers import format_of, parse


def parts(name: str, data: str | bytes, **options: str) -> list[Heading | Block]:
    whole = data.encode() if isinstance(data, str) else data
    return list(parse(name, whole, **options).parts)


def texts(found: list[Heading | Block]) -> list[str]:
    return [part.text for part in found]


def refusal(name: str, data: bytes) -> FileRefused:
    with pytest.raises(FileRefused) as caught:
        parts(name, data)
    return caught.value


def pdf_of(*pages: str) -> bytes:
    """A PDF with a line of Helvetica on each page."""
    kids = " ".join(f"{4 + 2 * n} 0 R" for n in range(len(pages)))
    objects = [
        "<< /Type /Catalog /Pages 2 0 R >>",
        f"<< /Type /Pages /Kids [{kids}] /Count {len(pages)} >>",
        "<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>",
    ]
    for n, page in enumerate(pages):
        stream = f"BT /F1 12 Tf 72 720 Td ({page}) Tj ET"
        objects += [
            f"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 612 792] /Contents {5 + 2 * n} 0 R"
            " /Resources << /Font << /F1 3 0 R >> >> >>",
            f"<< /Length {len(stream)} >>\nstream\n{stream}\nendstream",
        ]
    out, offsets = b"%PDF-1.4\n", list[int]()
    for number, body in enumerate(objects, 1):
        offsets.append(len(out))
        out += f"{number} 0 obj\n{body}\nendobj\n".encode()
    table = "".join(f"{offset:010} 00000 n \n" for offset in offsets)
    return (
        out
        + (
            f"xref\n0 {len(objects) + 1}\n0000000000 65535 f \n{table}"
            f"trailer << /Size {len(objects) + 1} /Root 1 0 R >>\nstartxref\n{len(out)}\n%%EOF\n"
        ).encode()
    )


def locked(data: bytes) -> bytes:
    from pypdf import PdfReader, PdfWriter

    writer = PdfWriter(clone_from=PdfReader(BytesIO(data)))
    writer.encrypt("secret", algorithm="RC4-128")
    out = BytesIO()
    writer.write(out)
    return out.getvalue()


def word_file() -> bytes:
    from docx import Document

    document = Document()
    document.add_heading("Pumps", 0)
    document.add_heading("Repairs", 1)
    document.add_paragraph("The pump was replaced in May.")
    document.add_paragraph("Order seals.", style="List Bullet")
    table = document.add_table(rows=2, cols=2)
    for row, cells in zip(table.rows, (("part", "price"), ("seal", "4")), strict=True):
        for cell, text in zip(row.cells, cells, strict=True):
            cell.text = text
    out = BytesIO()
    document.save(out)
    return out.getvalue()


def test_text_has_paragraphs_and_underlined_titles() -> None:
    found = parts("a.rst", "Guide\n=====\n\nFirst.\nMore.\n\nSet-up\n------\nLast.\n")
    assert found == [
        Heading("Guide", 1, 1),
        Block("First.\nMore.", 4),
        Heading("Set-up", 2, 7),
        Block("Last.", 9),
    ]


@pytest.mark.parametrize("name", ["a.md", "a.rst", "a.go", "a.py", "a.csv"])
def test_lines_may_end_as_on_windows(name: str) -> None:
    text = "one, two\n\nthree, four\n"
    assert parts(name, text.replace("\n", "\r\n")) == parts(name, text)


def test_settings_have_no_titles() -> None:
    assert parts("a.ini", "[a]\n====\nb = 1") == [Block("[a]\n====\nb = 1", 1, has_lines=True)]


def test_markdown_keeps_its_source_lines() -> None:
    found = parts(
        "a.md",
        "---\ntitle: x\n---\n# One\n\nText *here*.\n\n- a\n- b\n  c\n\n```\n# no heading\n```\n"
        "\n| a | b |\n|---|---|\n| 1 | 2 |\n",
    )
    assert found == [
        Block("title: x", 2, has_lines=True),
        Heading("One", 1, 4),
        Block("Text *here*.", 6),
        Block("- a", 8),
        Block("- b\n  c", 9, "\n"),
        Block("```\n# no heading\n```", 12, has_lines=True),
        Block("| a | b |\n|---|---|\n| 1 | 2 |", 16, has_lines=True),
    ]


def test_html_is_its_text_without_scripts_and_navigation() -> None:
    found = parts(
        "a.html",
        "<html><head><title>Pumps</title><style>p {}</style></head><body><nav>Home</nav>\n"
        "<h1>Pumps</h1><!-- no -->\n<p>The <b>pump</b> was\n replaced.</p><script>x()</script>"
        "<ul><li>seal<li>valve</ul><table><tr><th>part<th>price<tr><td>seal<td>4</table>"
        "<pre>a\n  b</pre><div>Loose <p>Inner</p> end</div></body></html>",
    )
    assert texts(found) == [
        "Pumps",
        "The pump was replaced.",
        "- seal",
        "- valve",
        "part | price",
        "seal | 4",
        "a\n  b",
        "Loose",
        "Inner",
        "end",
    ]
    assert (found[0], found[1].place) == (Heading("Pumps", 0, 1), 3)


def test_remarks_of_parsers_are_not_heard(
    caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    parts("a.html", "<?xml version='1.0'?><html><p>x</p></html>")
    parts("b.html", "https://example.org/")
    parts("a.py", "x = '\\d'\n")
    refusal("a.pdf", b"%PDF-1.4\nrubbish")
    assert (caplog.text, *capsys.readouterr()) == ("", "", "")


def test_a_deep_page_is_read() -> None:
    assert texts(parts("a.html", "<div>" * 5000 + "<p>deep</p>")) == ["deep"]


def test_a_table_names_its_columns_in_each_row() -> None:
    assert parts("a.csv", 'name;note\nAnna;"a\nb"\nBob;\n') == [
        Block("name: Anna; note: a b", 2, "\n"),
        Block("name: Bob", 3, "\n"),
    ]
    assert texts(parts("a.csv", "1,2\n3,4\n")) == ["1; 2", "3; 4"]
    assert texts(parts("a.csv", "a|b\n1,5|2\n2,5|3\n")) == ["a: 1,5; b: 2", "a: 2,5; b: 3"]
    assert texts(parts("a.csv", "a\nb\n")) == ["a: b"]
    assert texts(parts("a.tsv", "name\tage\n")) == ["name, age"]


def test_python_is_parted_at_its_definitions() -> None:
    found = parts(
        "a.py",
        "import x\n\n# About it.\n@x\ndef one():\n    pass\n\nclass Two:\n    a = 1\n\n"
        "    async def three(self): ...\n\nX = 1\n",
    )
    assert [part for part in found if isinstance(part, Block)] == [
        Block("import x", 1, has_lines=True),
        Block("# About it.\n@x\ndef one():\n    pass", 3, has_lines=True),
        Block("class Two:\n    a = 1", 8, has_lines=True),
        Block("    async def three(self): ...", 11, has_lines=True),
        Block("X = 1", 13, has_lines=True),
    ]
    names = [(part.text, part.level) for part in found if isinstance(part, Heading) and part.text]
    assert names == [("def one", 1), ("class Two", 1), ("def three", 2)]


@pytest.mark.parametrize(
    ("name", "source", "names"),
    [
        (
            "a.go",
            "package x\n\nfunc Run(a int) {\n\n}\n\ntype T struct {\n}\n",
            ["func Run", "type T"],
        ),
        ("a.rs", "use x;\n\npub fn run() {\n}\n\nimpl T for U {\n}\n", ["pub fn run", "impl T"]),
        ("a.c", "#include <x>\n\nstatic int run(int a)\n{\n}\n", ["static int run"]),
        ("a.js", "x();\n\nexport async function go() {\n}\n", ["export async function go"]),
        ("a.py", "def broken(:\n", ["def broken"]),
    ],
)
def test_other_code_is_parted_at_the_margin(name: str, source: str, names: list[str]) -> None:
    found = parts(name, source)
    headings = [part.text for part in found if isinstance(part, Heading)]
    assert [heading for heading in headings if heading in names] == names
    blocks = "".join(part.text for part in found if isinstance(part, Block))
    assert blocks.replace("\n", "") == source.replace("\n", "")


def test_one_long_line_of_code_does_not_hold_up() -> None:
    source = "a(" * 200_000
    (block,) = [part for part in parts("a.min.js", source) if isinstance(part, Block)]
    assert block.text == source


def test_quotes_without_end_do_not_hold_up() -> None:
    assert parts("a.csv", '"a' * 1000)


def test_a_pdf_has_its_pages() -> None:
    found = parts("a.pdf", pdf_of("The pump leaks.", "It was replaced."))
    assert found == [Block("The pump leaks.", 1), Block("It was replaced.", 2)]


def test_a_word_file_has_headings_items_and_tables() -> None:
    found = parts("a.docx", word_file())
    assert texts(found) == [
        "Pumps",
        "Repairs",
        "The pump was replaced in May.",
        "- Order seals.",
        "part | price",
        "seal | 4",
    ]
    assert found[1] == Heading("Repairs", 1, 2)


@pytest.mark.parametrize(
    ("data", "text"),
    [
        ("né\n".encode("utf-8-sig"), "né"),
        ("né".encode("utf-16"), "né"),
        ("né".encode("utf-32"), "né"),
        (b"# -*- coding: latin-1 -*-\n# n\xe9\n", "# -*- coding: latin-1 -*-\n# n\xe9"),
    ],
)
def test_text_that_says_its_encoding_is_read(data: bytes, text: str) -> None:
    assert texts(parts("a.txt", data)) == [text]


def test_an_encoding_can_be_named() -> None:
    assert texts(parts("a.txt", b"caf\xe9", encoding="latin-1")) == ["café"]
    with pytest.raises(FileRefused, match="no encoding that is known"):
        parts("a.txt", b"caf\xe9", encoding="klingon")


@pytest.mark.parametrize(
    ("name", "data", "problem", "remedy"),
    [
        ("a.txt", b"", "empty", "nothing"),
        ("a.txt", b" \n\t", "empty", "white space"),
        ("a.txt", b"\x89PNG\r\n\x1a\n", "binary", "leave it out"),
        ("a.md", b"ab\0cd", "binary", "leave it out"),
        ("a", bytes(range(1, 255)) * 9, "binary", "leave it out"),
        ("a.txt", b"caf\xe9 is open", "encoding", "latin-1"),
        ("a.pdf", b"%PDF-1.4\nrubbish", "damaged", "save it again"),
        ("a.pdf", b"no pdf at all", "damaged", "save it again"),
        ("a.pdf", locked(pdf_of("secret")), "encrypted", "without one"),
        ("a.pdf", pdf_of(""), "empty", "pictures"),
        ("a.docx", b"PK\x03\x04rubbish", "damaged", "save it again"),
        ("a.docx", b"\xd0\xcf\x11\xe0" + b"\0" * 600, "encrypted", "without one"),
        ("a.csv", b'a,b\n"' + b"x" * 200_000 + b'",1\n', "damaged", "CSV"),
    ],
)
def test_a_bad_file_is_refused_with_a_reason(
    name: str, data: bytes, problem: str, remedy: str
) -> None:
    refused = refusal(name, data)
    assert refused.problem == problem
    assert remedy in refused.message


def test_a_word_file_that_is_another_archive_is_damaged() -> None:
    out = BytesIO()
    with ZipFile(out, "w") as archive:
        archive.writestr("a.txt", "x")
    assert refusal("a.docx", out.getvalue()).problem == "damaged"


def test_a_name_says_the_format() -> None:
    assert [format_of(name) for name in ("A.MD", "x/y.Htm", "b.py", "LICENSE", "c.xyz")] == [
        "markdown",
        "html",
        "code",
        "text",
        "text",
    ]
