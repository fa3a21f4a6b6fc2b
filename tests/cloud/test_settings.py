"""cloud.yaml: all of it, or a sentence about what is wrong."""

from pathlib import Path

import pytest

from gateway.cloud import settings
from gateway.cloud.take_over import Gateway

WHOLE = """
secrets: {/run/skouter-cloud/peer.key: "projects/example/secrets/peer/versions/latest"}
takeOver:
  port: 9808
  gateways: [{interface: eni-1, address: 10.0.0.5, routeTables: [rtb-1], destinations: [0.0.0.0/0]}]
"""


def test_a_whole_file(tmp_path: Path) -> None:
    found = settings.read(_written(tmp_path, WHOLE))
    assert found.secrets == {
        Path("/run/skouter-cloud/peer.key"): "projects/example/secrets/peer/versions/latest"
    }
    assert found.gateways == (Gateway("eni-1", "10.0.0.5", ("rtb-1",), ("0.0.0.0/0",)),)
    assert found.port == 9808


def test_nothing_to_do(tmp_path: Path) -> None:
    assert settings.read(_written(tmp_path, "{}")) == settings.Settings({}, ())


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("secret: {}", "'secret' was unexpected"),
        ("secrets: {peer.key: x}", "'peer.key' does not match"),
        ("takeOver: {port: 0, gateways: []}", "$.takeOver."),
        ("secrets: [", "cloud.yaml"),
        ("", "None is not of type 'object'"),
    ],
)
def test_what_is_wrong_is_told(tmp_path: Path, text: str, told: str) -> None:
    with pytest.raises(settings.SettingsError) as raised:
        settings.read(_written(tmp_path, text))
    assert told in str(raised.value)


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(settings.SettingsError, match="No such file"):
        settings.read(tmp_path / "cloud.yaml")


def _written(folder: Path, text: str) -> Path:
    path = folder / "cloud.yaml"
    path.write_text(text)
    return path
