"""The task of classifying images: its loss, its metrics, its evaluation."""
