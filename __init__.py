"""PersonaLive for ComfyUI: the entry point of the node pack."""

if __package__:  # a test runner may import this file as a plain module
    from .nodes import comfy_entrypoint

    WEB_DIRECTORY = "./nodes/web"
    __all__ = ["WEB_DIRECTORY", "comfy_entrypoint"]
