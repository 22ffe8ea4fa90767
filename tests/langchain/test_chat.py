"""The chat model beside the VLM that it is: the same answers, honest counts, and nobody kept waiting."""

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from langchain_core.caches import InMemoryCache
from langchain_core.callbacks import BaseCallbackHandler, UsageMetadataCallbackHandler
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage, trim_messages
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate

from vlmkit import ChatVlmkit
from vlmkit.errors import UsageError, VlmkitError
from vlmkit.inference import model_inputs, question
from vlmkit.langchain import image_block

ASK = "what is in this image?"
ADDRESS = "https://example.org/a.png"
CONNECTORS = {
    "mlp": {"pool": 2},
    "gated_cross_attention": {"every": 1, "num_latents": 3, "depth": 1, "heads": 2, "head_dim": 4},
}


def asked(images, text=ASK):
    return [HumanMessage([*map(image_block, images), text])]


class Calls:
    """Counts the passes of a language model, and notes the mode of the whole model.

    Args:
        vlm: The model.
        gates: Number of a pass to what it waits for; `held` has what is set when it does so.
    """

    def __init__(self, vlm, gates=None):
        gates = gates or {}
        self.modes, self.held = [], {number: threading.Event() for number in gates}

        def told(*_):
            self.modes.append(vlm.training)
            if len(self.modes) in gates:
                self.held[len(self.modes)].set()
                assert gates[len(self.modes)].wait(60), "nobody let the answer go on"

        self.handle = vlm.language_model.register_forward_hook(told)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.handle.remove()


def wait_for_workers(before):
    for thread in set(threading.enumerate()) - before:
        thread.join(60)
        assert not thread.is_alive()


class TestAnswers:
    def test_are_those_of_the_model(self, vlm, chat, noise):
        for images in ([], [noise(1)], [noise(1, (40, 24)), noise(2)]):
            expected = vlm.ask(images, ASK, max_new_tokens=12)
            assert expected and chat.invoke(asked(images)).content == expected

    def test_of_a_conversation(self, vlm, chat, noise):
        answered = [*asked([noise(1)]), AIMessage("a red circle"), HumanMessage("sure?")]
        content = [{"type": "image", "image": noise(1)}, {"type": "text", "text": ASK}]
        expected = vlm.chat(
            [
                {"role": "system", "content": "be brief"},
                {"role": "user", "content": content},
                {"role": "assistant", "content": "a red circle"},
                {"role": "user", "content": "sure?"},
            ],
            max_new_tokens=12,
        )
        assert expected and chat.invoke([SystemMessage("be brief"), *answered]).content == expected
        assert chat.invoke(answered).content != expected  # the system message is read

    def test_are_the_same_by_every_way(self, vlm, chat, noise):
        message = asked([noise(1)])
        expected = vlm.ask(noise(1), ASK, max_new_tokens=12)

        async def others():
            pieces = [piece.content async for piece in chat.astream(message)]
            return "".join(pieces), (await chat.ainvoke(message)).content

        assert "".join(piece.content for piece in chat.stream(message)) == expected
        assert asyncio.run(others()) == (expected, expected)
        assert [m.content for m in chat.batch([message, message])] == [expected] * 2
        assert ChatVlmkit(model=vlm, max_tokens=12, streaming=True).invoke(message).content == expected
        assert (chat | StrOutputParser()).invoke(message) == expected

    def test_from_a_folder(self, vlm, tmp_path, noise):
        vlm.save_pretrained(tmp_path / "run")
        chat = ChatVlmkit(model=tmp_path / "run", max_tokens=5)
        answer = chat.invoke(asked([noise(1)]))
        assert answer.content == vlm.ask(noise(1), ASK, max_new_tokens=5)
        assert answer.response_metadata["model_name"] == str(tmp_path / "run")

    def test_a_prompt_with_an_image(self, chat, vlm, noise):
        block = {"type": "image", "base64": "{data}", "mime_type": "image/png"}
        prompt = ChatPromptTemplate([("human", [block, {"type": "text", "text": "{text}"}])])
        given = {"data": image_block(noise(1))["base64"], "text": ASK}
        assert (prompt | chat).invoke(given).content == vlm.ask(noise(1), ASK, max_new_tokens=12)

    def test_stream_in_pieces(self, chat, noise):
        *pieces, last = chat.stream(asked([noise(1)]), max_tokens=60)
        assert len(pieces) > 3 and all(piece.content for piece in pieces)
        assert not any(piece.usage_metadata or piece.chunk_position for piece in pieces)
        assert last.content == "" and last.chunk_position == "last"


class TestCounts:
    @pytest.mark.parametrize("connector", CONNECTORS)
    def test_input_and_images(self, make_vlm, noise, connector):
        """In the sequence, or beside it where blocks inside the language model look at the image."""
        model = make_vlm(connector={"type": connector, **CONNECTORS[connector]})
        images = [noise(1, (40, 24)), noise(2)]
        usage = ChatVlmkit(model=model, max_tokens=3).invoke(asked(images)).usage_metadata
        ids = model_inputs(model, [question(images, ASK)])["input_ids"][0].tolist()
        expected = sum(model.count_given(image.size) for image in images)
        words = len(ids) - ids.count(model.config.image_token_id)
        assert usage["input_token_details"] == {"image": expected}
        assert usage["input_tokens"] == words + expected and words > 10
        assert (connector == "mlp") == (usage["input_tokens"] == len(ids))
        assert usage["total_tokens"] == usage["input_tokens"] + usage["output_tokens"]

    def test_output(self, chat, vlm):
        with Calls(vlm) as calls:
            answer = chat.invoke("hello", max_tokens=7)
        assert answer.usage_metadata["output_tokens"] == len(calls.modes) == 7
        assert answer.response_metadata["finish_reason"] == "length"

    def test_an_end_token_ends_the_answer(self, make_vlm):
        model = make_vlm()
        first = int(model.generate(**model_inputs(model, [question([], "hello")]), max_new_tokens=1)[0, -1])
        model.generation_config.eos_token_id = [first, 1]
        answer = ChatVlmkit(model=model).invoke("hello")
        assert answer.response_metadata["finish_reason"] == "stop"
        assert answer.usage_metadata["output_tokens"] == 1

    def test_time_ends_the_answer(self, chat):
        answer = chat.invoke("hello", timeout=1e-6, max_tokens=300)
        assert answer.response_metadata["finish_reason"] == "timeout"
        assert answer.usage_metadata["output_tokens"] == 1

    def test_handlers_see_tokens_and_usage(self, vlm, chat):
        class Seen(BaseCallbackHandler):
            tokens = ()

            def on_llm_new_token(self, token, **_):
                self.tokens += (token,)

        seen, usage = Seen(), UsageMetadataCallbackHandler()
        pieces = [p.content for p in chat.stream("hello", config={"callbacks": [seen, usage]})]
        answer = chat.invoke("hello", config={"callbacks": [usage]})
        assert list(seen.tokens) == pieces
        counted = usage.usage_metadata[chat.model_name]
        assert counted["output_tokens"] == 2 * answer.usage_metadata["output_tokens"] == 24

    def test_messages_before_they_are_asked(self, vlm, chat, noise):
        ids = vlm.processor.tokenizer("hello there", add_special_tokens=False)["input_ids"]
        assert chat.get_num_tokens("hello there") == len(ids)
        messages = asked([noise(1, (40, 24))], "hello there")
        assert chat.get_num_tokens_from_messages(messages) == len(ids) + vlm.count_given((40, 24))
        history = [HumanMessage("hello " * 50), AIMessage("hi"), *messages]
        kept = trim_messages(history, max_tokens=60, token_counter=chat, start_on="human")
        assert kept == messages


class TestStop:
    def test_cuts_the_text_and_the_work(self, vlm, chat):
        whole = chat.invoke("hello", max_tokens=40).content
        middle = len(whole) // 2
        stop = whole[middle : middle + 3]
        expected = whole[: whole.index(stop)].strip()
        with Calls(vlm) as calls:
            answer = chat.invoke("hello", max_tokens=40, stop=[stop, "never"])
        assert answer.content == expected and expected
        assert answer.response_metadata["finish_reason"] == "stop"
        # The token that completes it is the last that is made.
        ids = vlm.generate(**model_inputs(vlm, [question([], "hello")]), max_new_tokens=len(calls.modes))[0]
        new = ids[-len(calls.modes) :]
        decode = vlm.processor.tokenizer.decode
        assert stop in decode(new, skip_special_tokens=True)
        assert stop not in decode(new[:-1], skip_special_tokens=True)
        assert answer.usage_metadata["output_tokens"] == len(new) < 40

    def test_of_the_model_and_of_a_call(self, vlm, chat):
        whole = chat.invoke("hello").content
        stopping = ChatVlmkit(model=vlm, max_tokens=12, stop=[whole[1]])
        assert stopping.invoke("hello").content == whole[:1].strip()
        assert stopping.invoke("hello", stop=[]).content == whole
        assert "".join(p.content for p in stopping.stream("hello")) == whole[:1].strip()


class TestThreads:
    def test_streams_side_by_side(self, vlm, chat):
        """Two that are read in turn: neither waits for the other's reader, and none mixes with the other."""
        alone = [[p.content for p in chat.stream(text)] for text in ("hello", "how are you?")]
        both = zip(chat.stream("hello"), chat.stream("how are you?"), strict=False)
        together = [(a.content, b.content) for a, b in both]
        assert together == list(zip(*alone, strict=False)) and len(together) > 1

    def test_the_mode_is_that_from_before(self, make_vlm):
        model = make_vlm().train()
        chat = ChatVlmkit(model=model, max_tokens=6)
        with Calls(model) as calls:
            chat.batch(["hello"] * 4)
            list(zip(chat.stream("hello"), chat.stream("hi"), strict=False))
        assert model.training and len(calls.modes) > 12 and not any(calls.modes)

    def test_a_closed_stream_makes_no_more(self, vlm, chat, waited_for):
        """The pass that is made while it is closed is the last."""
        before = set(threading.enumerate())
        with Calls(vlm, {20: waited_for}) as calls:
            stream = chat.stream("hello", max_tokens=300)
            next(stream)
            assert calls.held[20].wait(60)
            stream.close()
            wait_for_workers(before)
        assert len(calls.modes) == 20

    def test_the_loop_goes_on(self, vlm, png):
        """The event loop itself releases what the answer waits for: a loop that is blocked never would."""
        asked, gate = threading.Event(), threading.Event()

        def fetch(url):
            asked.set()
            assert gate.wait(60), "the event loop is blocked, or its pool is"
            return png

        chat = ChatVlmkit(model=vlm, max_tokens=5, fetch_image=fetch)
        messages = [HumanMessage([{"type": "image", "url": ADDRESS}, ASK])]

        async def main():
            asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(2))
            waiting = asyncio.create_task(chat.ainvoke(messages))
            others = [asyncio.create_task(chat.ainvoke(messages)) for _ in range(4)]
            assert await asyncio.to_thread(asked.wait, 60)
            free = await asyncio.to_thread(lambda: "free")
            gate.set()
            return free, (await waiting).content, {(await other).content for other in others}

        free, first, rest = asyncio.run(main())
        assert free == "free" and rest == {first}

    def test_a_cancelled_task_stops_the_work(self, vlm, chat):
        """The pass that a stream is left at is its last, and so is that of the task when it is cancelled."""
        before = set(threading.enumerate())
        left, cancelled = threading.Event(), threading.Event()

        async def main(calls):
            async for _ in chat.astream("hello", max_tokens=300):
                assert await asyncio.to_thread(calls.held[20].wait, 60)
                break
            # The loop closes one generator inside the other, each in a turn of its own.
            for _ in range(50):
                await asyncio.sleep(0)
            left.set()
            task = asyncio.create_task(chat.ainvoke("hello", max_tokens=300))
            assert await asyncio.to_thread(calls.held[30].wait, 60)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            cancelled.set()
            return await chat.ainvoke("hello")

        with Calls(vlm, {20: left, 30: cancelled}) as calls:
            answer = asyncio.run(main(calls)).content
            wait_for_workers(before)
            assert len(calls.modes) == 30 + 12
        assert answer == chat.invoke("hello").content

    @pytest.mark.parametrize("messages", [[AIMessage("hi")], "<image>"])
    def test_an_error_is_raised_where_it_is_awaited(self, chat, messages):
        for call in (chat.invoke, lambda m: list(chat.stream(m)), lambda m: asyncio.run(chat.ainvoke(m))):
            with pytest.raises(VlmkitError):
                call(messages)
        assert chat.invoke("hello").content


class TestRefusals:
    @pytest.mark.parametrize(
        ("arguments", "reason"),
        [
            ({"max_tokens": 0}, "max_tokens is 0"),
            ({"temperature": -1}, "temperature is -1"),
            ({"temperature": float("nan")}, "temperature is nan"),
            ({"timeout": 0}, "timeout is 0"),
            ({"stop": [""]}, "stop is"),
        ],
    )
    def test_values(self, vlm, chat, arguments, reason):
        with pytest.raises(UsageError, match=reason):
            ChatVlmkit(model=vlm, **arguments)
        with pytest.raises(UsageError, match=reason):
            chat.invoke("hello", **arguments)

    def test_arguments(self, vlm, chat):
        with pytest.raises(UsageError, match="cannot take max_token, top_k; possible: max_tokens, temp"):
            chat.invoke("hello", max_token=3, top_k=2)
        with pytest.raises(UsageError, match="cannot take model"):
            chat.invoke("hello", model="other")
        with pytest.raises(ValueError, match="max_token\n"):
            ChatVlmkit(model=vlm, max_token=3)
        with pytest.raises(UsageError, match="a model of type int is not possible"):
            ChatVlmkit(model=3)

    def test_tools(self, chat):
        def tool(a: int) -> int:
            """A tool."""

        for call in (
            lambda: chat.bind_tools([tool]),
            lambda: chat.with_structured_output({"title": "x", "type": "object", "properties": {}}),
            lambda: chat.invoke("hello", tools=[tool]),
            lambda: chat.get_num_tokens_from_messages([HumanMessage("hello")], tools=[tool]),
        ):
            with pytest.raises(UsageError, match="calls no tools"):
                call()


class TestSettings:
    def test_sampling_is_by_temperature(self, chat):
        from torch.random import manual_seed

        answers = []
        for seed in (0, 0, 1):
            manual_seed(seed)
            answers.append(chat.invoke("hello", temperature=1.5).content)
        assert answers[0] == answers[1] != answers[2]
        assert chat.invoke("hello").content == chat.invoke("hello", temperature=0).content

    def test_a_cache_tells_models_and_settings_apart(self, vlm, make_vlm):
        cache = InMemoryCache()
        first = ChatVlmkit(model=vlm, max_tokens=8, cache=cache)
        answer = first.invoke("hello").content
        with Calls(vlm) as calls:
            assert first.invoke("hello").content == answer
        assert not calls.modes
        other = ChatVlmkit(model=make_vlm(seed=1), max_tokens=8, cache=cache).invoke("hello").content
        assert other != answer
        short = ChatVlmkit(model=vlm, max_tokens=8, stop=[answer[1]], cache=cache)
        short._identity = first._identity
        assert short.invoke("hello").content == answer[:1].strip()

    def test_what_traces_show(self, vlm):
        chat = ChatVlmkit(model=vlm, max_tokens=8, temperature=0.5, api_key="secret")
        traced = chat._get_ls_params(stop=["x"])
        assert traced["ls_provider"] == "vlmkit" and traced["ls_model_name"] == chat.model_name
        assert (traced["ls_max_tokens"], traced["ls_temperature"], traced["ls_stop"]) == (8, 0.5, ["x"])
        shown = repr(chat) + str(chat._get_invocation_params())
        assert "secret" not in shown and "Linear" not in shown and "temperature=0.5" in shown
