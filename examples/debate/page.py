"""Serves the page of the debate on the app of Pipecat's runner."""

from pathlib import Path

from fastapi import FastAPI
from fastapi.responses import FileResponse

#: The files of the page: plain HTML, CSS and JavaScript, which need no build and no network.
FOLDER = Path(__file__).with_name("page")


def add_page(app: FastAPI) -> None:
    """Serve the page at ``/``, and its other files under ``/page/``.

    Args:
        app: The app of Pipecat's runner, before the runner adds its own routes.
    """
    for file in sorted(FOLDER.iterdir()):
        _add_file(app, "/" if file.name == "index.html" else f"/page/{file.name}", file)


def _add_file(app: FastAPI, path: str, file: Path) -> None:
    def serve() -> FileResponse:
        # A browser asks again each time, so an edited file is seen after a reload.
        return FileResponse(file, headers={"Cache-Control": "no-cache"})

    app.add_api_route(path, serve, methods=["GET", "HEAD"], include_in_schema=False)
