from running import undisturbed

__all__ = ["undisturbed"]
