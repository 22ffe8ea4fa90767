"""Rows that were tokenised before are those that would be tokenised now."""

import copy
import pickle
from dataclasses import replace
from datetime import date

import pytest
from torch.utils.data import DataLoader

from vlmkit.data.collate import Collator, TextRules, sample_rows
from vlmkit.data.known_rows import KnownRows
from vlmkit.data.prompts import PROMPTS
from vlmkit.data.tokens import TokenRow, expand, tokenize
from vlmkit.errors import VlmkitError
from vlmkit.llm.words import build_words_tokenizer
from vlmkit.share import keys
from vlmkit.share.keys import tokens_key
from vlmkit.share.tokens import BATCH, SharedRows


@pytest.fixture(scope="module")
def rules(tiny_vlm):
    """A function: prompt and options to the rules of a tiny model."""
    processor = tiny_vlm().processor

    def make(prompt="chat_template", **options):
        counts, image = processor.count_fitted, processor.image_token_id
        return TextRules(processor.tokenizer, PROMPTS[prompt], counts, image, **options)

    return make


@pytest.fixture
def samples(make_sample):
    """One image, several, none; equal words of different weight."""
    return [
        make_sample("one", 1, ("what color is it?", "red"), ("is there a circle in the image?", "no")),
        make_sample("two", 2, ("how many images are there?", "three of them")),
        make_sample("none", 0, ("say yes", "yes")),
        make_sample("half", 0, ("say yes", "yes"), weight=0.5),
    ]


def rows_of(samples, rules):
    return [sample_rows(s, [(16, 16, 0)] * len(s.images), rules) for s in samples]


@pytest.mark.parametrize("prompt", ["chat_template", "vicuna_v1"])
def test_stored_rows_are_those_made_anew(rules, samples, tmp_path, prompt):
    fresh = rows_of(samples, rules(prompt, eos_weight=0.3))
    first, again = (SharedRows(tmp_path / "rows.sqlite") for _ in range(2))
    assert rows_of(samples, rules(prompt, eos_weight=0.3, known=first)) == fresh
    first.flush()
    conversations = [conversation for sample in samples for conversation in sample.conversations]
    assert all(again.get(conversation) is not None for conversation in conversations)
    assert rows_of(samples, rules(prompt, eos_weight=0.3, known=again)) == fresh
    assert fresh[2][0].weights != fresh[3][0].weights


def test_counts_are_put_in_when_rows_are_built(rules, samples):
    """One memory serves images of any size: the counts are no part of it."""
    one = rules(pack="none")
    segments = one.prompt.render(samples[1].conversations[0], one.tokenizer)
    arguments = segments, one.tokenizer, one.image_token_id
    small = tokenize(*arguments, [1, 1])
    for counts in ([3, 2], [0, 5]):
        assert expand(small, one.image_token_id, counts) == tokenize(*arguments, counts)
    with pytest.raises(VlmkitError, match="2 image slots and 3 images"):
        expand(small, one.image_token_id, [1, 1, 1])
    for times in (1, 2):
        counted = replace(one, count_tokens=lambda size, times=times: 4 * times)
        (row,) = sample_rows(samples[0], [(16, 16, 0)], counted)[:1]
        assert row.ids.count(one.image_token_id) == 4 * times


def test_a_bad_text_is_refused_every_time(rules, make_sample):
    bad, known = make_sample("bad", 0, ("say <image>", "yes")), KnownRows()
    for _ in range(2):
        with pytest.raises(VlmkitError, match=r"sample 'bad': .*<image>"):
            rows_of([bad], rules(known=known))


def test_room_is_bounded_and_what_is_in_it_stays():
    known = KnownRows(room=5)
    for name, length in (("a", 3), ("b", 3), ("c", 2)):
        known.put(name, TokenRow((1,) * length, (0.0,) * length))
    assert known.get("a") and known.get("c") and known.get("b") is None


def test_rows_are_written_in_batches_and_a_copy_for_a_worker_opens_the_file_anew(tmp_path, make_sample):
    rows = SharedRows(tmp_path / "rows.sqlite")
    talks = [make_sample(str(i), 0, (f"say {i}", "yes")).conversations[0] for i in range(BATCH)]
    for i, talk in enumerate(talks):
        assert SharedRows(rows._blobs.path).get(talks[0]) is None
        rows.put(talk, TokenRow((i, 2), (0.25, 1.0)))
    opened = pickle.loads(pickle.dumps(rows))
    other = SharedRows(tmp_path / "rows.sqlite")
    assert opened.get(talks[7]) == other.get(talks[7]) == TokenRow((7, 2), (0.25, 1.0))


def test_workers_find_and_leave_rows(rules, samples, tmp_path):
    """Each worker process has its own connection; the batches are those of one process."""
    known = SharedRows(tmp_path / "rows.sqlite")
    collate = Collator((), rules(known=known))
    items = [[(sample, 0)] for sample in samples if not sample.images] * 3
    batches = [collate(item) for item in items]
    for batch, other in zip(batches, DataLoader(_Batches(items, collate), None, num_workers=2), strict=True):
        assert (batch.input_ids_BL == other.input_ids_BL).all()


class _Batches:
    def __init__(self, items, collate):
        self.items, self.collate = items, collate

    def __len__(self):
        return len(self.items)

    def __getitem__(self, number):
        return self.collate(self.items[number])


def test_what_matters_changes_the_key(rules):
    base = rules()
    assert tokens_key(base, "chat_template") == tokens_key(
        rules(max_length=9, pack="prefix"), "chat_template"
    )
    words = replace(base, tokenizer=build_words_tokenizer(["other words"]))
    template = replace(base, tokenizer=copy.deepcopy(base.tokenizer))
    template.tokenizer.chat_template += " "
    found = [
        tokens_key(base, "chat_template"),
        tokens_key(base, "vicuna_v1"),
        *[tokens_key(r, "chat_template") for r in (rules(eos_weight=0.5), words, template)],
    ]
    assert len(set(found)) == len(found)


def test_a_template_that_states_the_date_is_of_its_day(rules, monkeypatch):
    """Rows that were tokenised yesterday hold yesterday's date; other templates do not look at it."""
    base = rules()
    dated = replace(base, tokenizer=copy.deepcopy(base.tokenizer))
    dated.tokenizer.chat_template = "{{ strftime_now('%d %b %Y') }}" + base.tokenizer.chat_template
    found = {}
    for day in (date(2025, 3, 1), date(2025, 3, 2)):
        monkeypatch.setattr(keys, "today", lambda day=day: day)
        found[day] = [tokens_key(own, "chat_template") for own in (base, dated)]
    (plain, first), (same, second) = found.values()
    assert plain == same and first != second


def test_a_damaged_file_is_named(tmp_path, samples):
    (tmp_path / "rows.sqlite").write_bytes(b"no database" * 500)
    with pytest.raises(VlmkitError, match=r"rows\.sqlite: .*delete the file: it is only a cache"):
        SharedRows(tmp_path / "rows.sqlite").get(samples[0].conversations[0])
