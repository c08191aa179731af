"""Takes a picture of a page in a real Chromium: ``python browser.py PAGE PNG WIDTH HEIGHT light|dark``."""

from __future__ import annotations

import json
import os
import sys

os.environ.setdefault("QT_QPA_PLATFORM", "offscreen")
page, png, width, height, scheme = sys.argv[1:]
os.environ["QTWEBENGINE_CHROMIUM_FLAGS"] = (
    "--no-sandbox --disable-gpu --force-color-profile=srgb "
    f"--blink-settings=preferredColorScheme={0 if scheme == 'dark' else 1}"
)

from PySide6.QtCore import Qt, QTimer, QUrl  # noqa: E402
from PySide6.QtWebEngineCore import QWebEngineUrlRequestInterceptor  # noqa: E402
from PySide6.QtWebEngineWidgets import QWebEngineView  # noqa: E402
from PySide6.QtWidgets import QApplication  # noqa: E402

MEASURE = """JSON.stringify({
  overflow: document.documentElement.scrollWidth - document.documentElement.clientWidth,
  broken: [...document.images].filter(i => i.complete && !i.naturalWidth).length,
  images: document.images.length,
  ground: getComputedStyle(document.body).backgroundColor,
  ink: getComputedStyle(document.body).color,
  columns: getComputedStyle(document.querySelector('ol')).gridTemplateColumns.split(' ').length
})"""


class Requests(QWebEngineUrlRequestInterceptor):
    """Every address that the page asks for."""

    def __init__(self) -> None:
        super().__init__()
        self.urls: list[str] = []

    def interceptRequest(self, info) -> None:
        url = info.requestUrl().toString()
        if not url.startswith("data:"):
            self.urls.append(url)


application = QApplication(sys.argv[:1])
application.styleHints().setColorScheme(Qt.ColorScheme.Dark if scheme == "dark" else Qt.ColorScheme.Light)
view, requests = QWebEngineView(), Requests()
view.page().profile().setUrlRequestInterceptor(requests)
view.resize(int(width), int(height))
view.setAttribute(Qt.WidgetAttribute.WA_DontShowOnScreen, False)


def measured(found: str) -> None:
    view.grab().save(png)
    print(json.dumps({**json.loads(found), "requests": requests.urls}))
    application.quit()


def loaded(ok: bool) -> None:
    if not ok:
        application.exit(1)
    QTimer.singleShot(1500, lambda: view.page().runJavaScript(MEASURE, 0, measured))


view.loadFinished.connect(loaded)
view.load(QUrl.fromLocalFile(os.path.abspath(page)))
view.show()
sys.exit(application.exec())
