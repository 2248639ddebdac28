"""The built-in formulations; they use only what `import lipmodel` offers to everybody."""
