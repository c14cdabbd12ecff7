"""demo/sampling.py: what the page does, and the same in a real browser."""

import json
import os
import shutil
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest
from PIL import Image

from demo import sampling as door
from gm.errors import SuiteError
from tests.demo import browser

ROOT = Path(door.__file__).resolve().parents[1]
WEIGHT = ROOT / "demo/tiny/tiny_sdxl.safetensors"
OPTIONS = ("--sample_step", "3", "--batch_size", "2", "--num_images", "2")


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    """A command line whose weights stand beside others."""
    place = tmp_path_factory.mktemp("page")
    for name in ("before.safetensors", "after.safetensors"):
        shutil.copy(WEIGHT, place / name)
    return [
        *("--config", str(ROOT / "configs/inference/tiny_sdxl.yaml"), "--tokenizer", str(ROOT / "demo/tiny/tokenizer")),
        *("--weight", str(place / "before.safetensors"), "--save_path", str(place / "drawn"), *OPTIONS),
    ]


def test_the_page_is_refused_where_it_cannot_work(monkeypatch):
    with pytest.raises(SuiteError, match="unknown flag --samplr: did you mean --sampler"):
        door.main(["--samplr", "euler"])
    with pytest.raises(SuiteError, match="the page draws from prompts alone: --img"):
        door.main(["--task", "img2img", "--img", "in.png"])
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(SuiteError, match="--extras ui"):
        door.main([])


@pytest.fixture(scope="module")
def page(words):
    """The page on the device of this process, which is ready: setting it up a second time is an error of MindSpore."""
    testing = pytest.importorskip("streamlit.testing.v1", reason="the extra ui is not installed")

    def script(words):
        from demo.sampling import page

        page(words)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("gm.sampling.studio.start_device", lambda config: None)
        page = testing.AppTest.from_function(script, default_timeout=300, kwargs={"words": words})
        yield page.run()


class TestPage:
    def test_it_begins_with_what_the_command_line_says(self, page):
        assert not page.exception
        assert page.number_input(key="sample_step").value == 3
        assert (page.number_input(key="height").value, page.selectbox(key="sampler").value) == (64, "euler")
        assert page.selectbox(key="weight").options == ["before.safetensors", "after.safetensors"]

    def test_it_tells_what_is_wrong_in_one_line(self, page):
        page.text_area(key="prompt").input("a circle --ar 16:9").run()
        page.button[0].click().run()
        assert "unknown option --ar" in page.error[0].value
        page.text_area(key="prompt").input("").run()
        page.button[0].click().run()
        assert "nothing to draw" in page.error[0].value

    @pytest.mark.slow
    def test_it_draws_one_model_and_two_at_the_same_seeds(self, page, words):
        page.text_area(key="prompt").input("a red circle on grey\na blue square on black --seed 7").run()
        page.button[0].click().run()
        assert not page.exception
        assert not page.error
        folder = Path(page.caption[-1].value.removeprefix("In "))
        names = sorted(path.name for path in folder.glob("0*.png"))
        assert [name.split("_")[1] for name in names] == ["seed42", "seed43", "seed7", "seed8"]
        page.selectbox(key="other").select(str(Path(words[5]).with_name("after.safetensors"))).run()
        page.button[0].click().run()
        assert not page.exception
        assert [header.value for header in page.subheader] == ["before.safetensors", "after.safetensors"]
        beside = Path(page.caption[-1].value.removeprefix("In ")).parent
        for name in names:  # the same weights, seeds and prompts in both
            assert Image.open(beside / "a" / name).tobytes() == Image.open(beside / "b" / name).tobytes()

    @pytest.mark.slow
    def test_it_takes_the_settings_of_a_picture(self, page, words):
        (folder,) = Path(words[words.index("--save_path") + 1]).glob("page/0001/a")
        picture = folder / "002_seed7_a-blue-square-on-black.png"
        page.number_input(key="seed").set_value(1).run()
        page.file_uploader[0].set_value((picture.name, picture.read_bytes(), "image/png")).run()
        assert (page.text_area(key="prompt").value, page.number_input(key="seed").value) == (
            "a blue square on black",
            7,
        )
        assert page.number_input(key="num_images").value == 1
        page.file_uploader[0].set_value(("some.png", b"no picture", "image/png")).run()
        assert "some.png has no settings inside" in page.error[0].value


@pytest.mark.slow
@pytest.mark.skipif(bool(browser.missing()), reason=browser.missing())
def test_a_browser_draws_compares_and_loads_settings(words, tmp_path):
    pytest.importorskip("streamlit", reason="the extra ui is not installed")
    address = f"http://127.0.0.1:{(port := browser.free_port())}"
    settings = {"STREAMLIT_SERVER_PORT": str(port), "STREAMLIT_SERVER_HEADLESS": "true"}
    environment = {**os.environ, **settings, "STREAMLIT_SERVER_FILE_WATCHER_TYPE": "none"}
    command = [sys.executable, str(ROOT / "demo/sampling.py"), *words[:-1], "1", "--save_path", str(tmp_path / "drawn")]
    with (tmp_path / "log.txt").open("w") as log:
        server = subprocess.Popen(command, env=environment, stdout=log, stderr=log, cwd=tmp_path)
    try:
        browser.wait_for(lambda: answers(address), "the page's server", 60)
        with browser.Browser(tmp_path / "profile") as window:
            window.open(address)
            window.click("//button[.='Draw']")
            window.wait("//img[contains(@src, '/media/')]", seconds=180)
            window.screenshot(tmp_path / "drawn.png")
            (first,) = (tmp_path / "drawn/page/0001/a").glob("0*.png")
            assert json.loads(Image.open(first).text["settings"])["seed"] == 42

            seed = "//input[@aria-label='Seed']"
            window.write(seed, "\ue009a\ue000" + "9\n")  # select all, 9
            browser.wait_for(lambda: window.value(seed) == "9", "the seed written", 30)
            window.write("//input[@type='file']", str(first))
            browser.wait_for(lambda: window.value(seed) == "42", "the picture's seed", 30)

            window.click("//input[@aria-label='Compare with']")
            window.click("//*[@role='option'][contains(., 'after.safetensors')]")
            window.click("//button[.='Draw']")
            window.wait("//h3[.='after.safetensors']", seconds=180)
            window.wait("//img[contains(@src, '/media/')]", count=2)
            window.screenshot(tmp_path / "beside.png")
            assert not window.find("//div[@data-testid='stException']")
        beside = tmp_path / "drawn/page/0002"
        assert (beside / "a" / first.name).read_bytes() != b""
        assert Image.open(beside / "a" / first.name).tobytes() == Image.open(beside / "b" / first.name).tobytes()
    finally:
        server.terminate()
        server.wait(30)


def answers(address: str) -> bool:
    try:
        return urllib.request.urlopen(f"{address}/_stcore/health", timeout=2).status == 200
    except OSError:
        return False
