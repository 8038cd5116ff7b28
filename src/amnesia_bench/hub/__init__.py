"""The Hugging Face hub: fetch verified files, and find files that were fetched earlier."""
