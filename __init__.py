"""VideoFlexTok for ComfyUI: this folder is the node pack, `vft_lib` in it the library.

ComfyUI imports the clone as a package. Tools that merely walk the folder, pytest among them,
import this file as a top-level module called `__init__`: there is nothing to set up then, and a
relative import would fail.
"""

if __package__:
    from .vft_nodes import comfy_entrypoint

    WEB_DIRECTORY = "./vft_nodes/web"
    __all__ = ["WEB_DIRECTORY", "comfy_entrypoint"]
