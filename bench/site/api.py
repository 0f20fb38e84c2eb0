from articles.models import Article
from rest_framework import generics, serializers
from rest_framework.response import Response
from rest_framework.throttling import AnonRateThrottle
from rest_framework.views import APIView


class ArticleSerializer(serializers.ModelSerializer):
    class Meta:
        model = Article
        fields = ["id", "title", "body", "price", "published"]


class PlainArticles(generics.ListAPIView):
    queryset = Article.objects.order_by("id")
    serializer_class = ArticleSerializer


class CoroutineArticles(generics.GenericAPIView):
    queryset = Article.objects.order_by("id")
    serializer_class = ArticleSerializer

    async def get(self, request):
        articles = [each async for each in self.filter_queryset(self.get_queryset())]
        return Response(self.get_serializer(articles, many=True).data)


class PlainLimited(APIView):
    """A session and a throttle, both in the cache."""

    throttle_classes = [AnonRateThrottle]

    def get(self, request):
        return Response({"visits": request.session["visits"]})


class CoroutineLimited(APIView):
    throttle_classes = [AnonRateThrottle]

    async def get(self, request):
        return Response({"visits": await request.session.aget("visits")})
