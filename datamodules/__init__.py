"""From files to batches: the frames store, readers of other formats, postures, and what becomes of a row."""
