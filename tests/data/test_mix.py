from macft.data.examples import ChatExample, CompletionExample, Message, TextExample
from macft.data.mix import hash_example, is_held_out


def test_a_rows_place_depends_on_what_it_says_alone():
    assert hash_example(TextExample("a", "x.jsonl:1")) == hash_example(TextExample("a", "y.jsonl:9"))
    assert hash_example(TextExample("a")) != hash_example(TextExample("b"))
    assert hash_example(CompletionExample("a", "b")) != hash_example(CompletionExample("b", "a"))
    chat = ChatExample((Message("user", "a"), Message("assistant", "b")))
    assert hash_example(chat) != hash_example(ChatExample((*chat.messages[:1], Message("assistant", "b", train=False))))


def test_the_hash_is_frozen():
    """A change of this number would move rows between train and valid for everybody."""
    assert hash_example(TextExample("To be, or not to be")) == 16362495651205413724


def test_the_held_out_share_is_near_the_fraction_and_grows_with_it():
    hashes = [hash_example(TextExample(f"row {number}")) for number in range(4000)]
    held = {fraction: {h for h in hashes if is_held_out(h, fraction)} for fraction in (0.0, 0.05, 0.5)}
    assert not held[0.0]
    assert 150 < len(held[0.05]) < 250
    assert held[0.05] < held[0.5]
