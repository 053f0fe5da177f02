"""Chat templates come with a model and are programs: they run in a sandbox or not at all."""

import pytest

from sempa_mlx.data.records import Message
from sempa_mlx.errors import ModelError
from sempa_mlx.model.load import load_model
from sempa_mlx.model.prompts import ChatRenderer
from tests.tiny import tiny_tokenizer, write_tiny_folder

QUESTION = (Message("user", "Q"),)
ESCAPES = [
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{{ cycler.__init__.__globals__.os.system('touch ran') }}",
    "{{ messages.append.__self__.__class__.__base__.__subclasses__() }}",
    "{% for part in range(10000000) %}x{% endfor %}",
    "{{ messages.append({'role': 'user', 'content': 'more'}) }}",
    "{% include '/etc/passwd' %}",
    "{% import 'os' as os %}",
    "{{ '{0.__class__.__init__.__globals__}'.format(messages) }}",
]


@pytest.mark.parametrize("template", ESCAPES)
def test_a_template_cannot_leave_its_sandbox(tmp_path, monkeypatch, template):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelError, match="chat template"):
        ChatRenderer(tiny_tokenizer(template)).prompt(QUESTION)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("template", ["{{ 1 / 0 }}", "{{ 'a' + 1 }}", "{{ messages[0] * 'a' }}"])
def test_a_template_that_breaks_is_told(template):
    with pytest.raises(ModelError, match="chat template"):
        ChatRenderer(tiny_tokenizer(template)).prompt(QUESTION)


def test_a_template_file_of_a_folder_runs_in_the_sandbox(tmp_path):
    write_tiny_folder(tmp_path / "model")
    (tmp_path / "model" / "chat_template.jinja").write_text(ESCAPES[0])
    with pytest.raises(ModelError, match="chat template"):
        ChatRenderer(load_model(str(tmp_path / "model")).tokenizer)
