"""The other side of bench/serve.py: the article's endpoint. FastAPI, a pickled random forest, pandas.

MODEL=model.pkl uvicorn serve_article:app --port PORT
"""

import io
import os
import pickle

import pandas as pd
from fastapi import FastAPI, Request
from fastapi.responses import Response

app = FastAPI()
with open(os.environ["MODEL"], "rb") as file:
    model, columns = pickle.load(file)


@app.post("/predict")
def predict(rows: list[dict[str, float]]) -> list[float]:
    """The probabilities of JSON rows."""
    return model.predict_proba(pd.DataFrame(rows)[columns])[:, 1].tolist()


@app.post("/predict_csv")
async def predict_csv(request: Request) -> Response:
    """A CSV with the probabilities added."""
    table = pd.read_csv(io.BytesIO(await request.body()))
    table["probability"] = model.predict_proba(table[columns])[:, 1]
    return Response(table.to_csv(index=False), media_type="text/csv")
