"""LangChain's standard suites for chat models, offline: sockets are blocked, downloads get bundled bytes."""

from types import SimpleNamespace

import pytest
import pytest_socket
from langchain_tests.integration_tests import ChatModelIntegrationTests, chat_models
from langchain_tests.unit_tests import ChatModelUnitTests

from vlmkit import ChatVlmkit


@pytest.fixture(autouse=True)
def no_connections():
    pytest_socket.disable_socket(allow_unix_socket=True)  # an event loop has one, for itself
    yield
    pytest_socket.enable_socket()


@pytest.fixture(autouse=True)
def downloads(monkeypatch, png):
    """What the suite downloads is this picture."""
    monkeypatch.setattr(chat_models.httpx, "get", lambda url, **options: SimpleNamespace(content=png))


class Parameters:
    """What the model can and cannot do."""

    chat_model_class = ChatVlmkit
    has_tool_calling = False  # bind_tools is there to say that it is not possible
    has_structured_output = False
    supports_image_inputs = True
    supports_model_override = False

    @pytest.fixture(autouse=True)
    def given(self, vlm):
        self.vlm = vlm

    @property
    def chat_model_params(self):
        return {"model": self.vlm}

    @property
    def standard_chat_model_params(self):
        return {**super().standard_chat_model_params, "max_tokens": 12}


class TestUnit(Parameters, ChatModelUnitTests):
    pass


class TestIntegration(Parameters, ChatModelIntegrationTests):
    pass


def test_the_flags_are_the_profile(vlm):
    """What the suites are told is what the model itself says."""
    profile = ChatVlmkit(model=vlm).profile
    tests = TestIntegration()
    assert profile["image_inputs"] == tests.supports_image_inputs
    assert profile["image_url_inputs"] == tests.supports_image_urls
    assert profile["tool_calling"] == tests.has_tool_calling
    assert profile["structured_output"] == tests.has_structured_output
    assert profile["pdf_inputs"] == tests.supports_pdf_inputs
    assert profile["audio_inputs"] == tests.supports_audio_inputs
    assert profile["video_inputs"] == tests.supports_video_inputs
    assert profile["image_tool_message"] == tests.supports_image_tool_message
    assert ChatVlmkit(model=vlm, fetch_image=lambda url: b"").profile["image_url_inputs"]
